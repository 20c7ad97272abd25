"""Texts as vectors that are near each other where they belong together: search, matching.

v = pooled / |pooled|, no head. Loss: of each pair (a, b) of a micro-batch, the cross entropy of
a's cosines to every b, over the temperature, with its own b as the target, and the other way round
("in-batch negatives": Henderson et al. 2017, arXiv 1705.00652; both ways: Radford et al. 2021,
arXiv 2103.00020). All hard negatives of the micro-batch's rows are further wrong answers for each a
(Karpukhin et al. 2020, arXiv 2004.04906). A text that stands in the row of an equal a or b isn't
wrong, and left out. With `dimensions`, the mean over vectors cut to each of them, so that a cut
vector serves too (Kusupati et al. 2022, "Matryoshka", arXiv 2205.13147).

A larger micro-batch is a harder task: `accumulate` and more processes make it smaller.

B pairs of a micro-batch, C second texts and negatives, N texts of all kinds, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptx.data.duplicates import digest
from adaptx.data.encode import TextEncoder, check_texts
from adaptx.data.records import Pair
from adaptx.data.windows import Input, Window, whole
from adaptx.errors import DataError, OptionError, choices
from adaptx.tasks.base import Task
from adaptx.tasks.target import Reading, Target, no_label

if TYPE_CHECKING:
    from torch import Tensor

A, B, NEGATIVE = range(3)  # which of a row's texts one is


@dataclass(frozen=True)
class Ranked:
    """A document held against a query: `documents[place]`, and the cosine of both vectors."""

    place: int
    text: str
    score: float

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.score:.3f}\t{self.text}"


@dataclass(frozen=True)
class Retrieval(Task):
    """A vector of length 1 for each text; learnt from pairs of texts that belong together.

    temperature  what cosines are divided by; e5 was trained with 0.01
    dimensions   lengths to which a vector may be cut, such as (384, 128, 64)
    """

    temperature: float = 0.05
    dimensions: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    pooling: str = "mean"

    kind = "retrieval"
    hub = "feature-extraction"
    record = Pair
    together = True
    contrasts = True
    has_head = False
    chooses = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "dimensions", tuple(self.dimensions))
        self.check_pooling()
        if self.labels:
            raise OptionError("Retrieval has no labels.")
        number = isinstance(self.temperature, (int, float))
        if not number or not 0 < self.temperature < 1e3:
            raise OptionError(f"temperature={self.temperature!r} must be a number above 0.")
        if not all(type(size) is int and size > 0 for size in self.dimensions):
            raise OptionError(f"dimensions={self.dimensions!r} must be whole numbers above 0.")

    def check_width(self, hidden_size: int) -> None:
        """Raise OptionError for vectors longer than the encoder's."""
        if too_long := [size for size in self.dimensions if size > hidden_size]:
            raise OptionError(
                f"dimensions={self.dimensions!r}: this encoder's vectors have {hidden_size} "
                f"numbers, so they can't be cut to {choices(too_long)}."
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of each first text's search among all second ones."""
        return "mrr", "recall_at_1", "recall_at_10", "ndcg_at_10"

    @property
    def reads(self) -> str:
        """What it does, in words."""
        return "It reads a text and answers with a vector, near those of texts that belong to it"

    def fit(self, train: Sequence[Pair], dev: Sequence[Pair] = ()) -> Retrieval:
        """The task; DataError where there is only one pair, and no negative."""
        if len(train) < 2 and not any(pair.negatives for pair in train):
            raise DataError("there is less than two pairs: each is a wrong answer for the others.")
        return self

    def inputs(self, records: Sequence[Pair]) -> list[Input]:
        """Both texts of each pair."""
        return [(record.text, record.other) for record in records]

    def training_inputs(self, records: Sequence[Pair]) -> list[tuple[str, ...]]:
        """Both texts of each pair, and its negatives."""
        return [(record.text, record.other, *record.negatives) for record in records]

    def windows(
        self, text: TextEncoder, prefix: str, inputs: Sequence[Input], max_length: int | None = None
    ) -> list[list[Window]]:
        """One window of a text; of a pair, with negatives or without, one of each text."""
        texts = [(one,) if isinstance(one, str) else tuple(one) for one in inputs]
        flat = whole(text, prefix, [one for each in texts for one in each], max_length)
        found, at = [], 0
        for each in texts:
            found.append(flat[at : at + len(each)])
            at += len(each)
        return found

    def targets(
        self, records: Sequence[Pair], windows: Sequence[Sequence[Window]] = ()
    ) -> list[np.ndarray]:
        """int64 `[texts, 2]` of each row: which of its texts it is, and a number for the text."""
        found = []
        for record in records:
            texts = self.training_inputs([record])[0]
            kinds = [A, B, *[NEGATIVE] * len(record.negatives)]
            numbers = [digest(text) >> 1 for text in texts]
            found.append(np.array([kinds, numbers], np.int64).T)
        return found

    def stacked(self, targets: Sequence[np.ndarray], tokens: int) -> np.ndarray:
        """int64 `[N, 2]`: of the texts of all rows."""
        return np.concatenate(targets)

    def losses(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Vectors `[N, H]`, targets `[N, 2]`, row after row -> fp32 `[B]`."""
        import torch
        from torch.nn.functional import normalize

        kinds, texts = targets.unbind(1)
        a, b, c = (kinds == kind for kind in (A, B, NEGATIVE))
        # Beside its own, what is a right answer to a isn't a wrong one.
        allowed_BC = texts[b][:, None] != torch.cat([texts[b], texts[c]])
        allowed_BC[:, : int(b.sum())] &= texts[a][:, None] != texts[a]
        allowed_BC.fill_diagonal_(True)
        total = torch.zeros(int(a.sum()), device=outputs.device)
        sizes = self.dimensions or (outputs.shape[-1],)
        for size in sizes:
            v_NH = normalize(outputs[:, :size].float(), dim=-1)
            logits_BC = v_NH[a] @ torch.cat([v_NH[b], v_NH[c]]).T / self.temperature
            square = slice(len(total))
            for logits, allowed in (
                (logits_BC, allowed_BC),
                (logits_BC[:, square].T, allowed_BC[:, square].T),
            ):
                total = total + _own(logits, allowed, smoothing) / (2 * len(sizes))
        return total

    def answer(self, one: Input, windows: Sequence[Window], outputs: Sequence[np.ndarray]) -> Any:
        """A text's vector, fp32 `[H]`, of length 1; of a pair, both: `[2, H]`."""
        vectors = np.stack([x / max(np.linalg.norm(x), 1e-12) for x in outputs])
        return vectors[0] if isinstance(one, str) else vectors[: len(one)]

    def target(
        self, one: Input, answer: Any, label: str | None = None, word: str | None = None
    ) -> Target:
        """The cosine of two texts' vectors."""
        if isinstance(one, str):
            raise OptionError(
                "This adapter answers with a vector, which has no score to explain. Give a second "
                "text too: the cosine of both is explained."
            )
        no_label(label, "a cosine")
        return Target("cosine", "cosine")

    def reading(
        self, target: Target, windows: Sequence[Window], outputs: Sequence[np.ndarray]
    ) -> Reading:
        """The first text's vector against the second's, which stays as it is."""
        import torch

        return Reading(0, partial(_cosine, torch.from_numpy(outputs[1]).double()))


def ranked(
    query: str,
    documents: Sequence[str],
    name: str | None,
    task: Task | None,
    embed: Callable[[list[str]], Sequence[np.ndarray]],
    top: int | None = None,
) -> list[Ranked]:
    """The documents by their vectors' cosine with the query's, the nearest first, at most `top`.

    Those that are as near stand as they were given. `embed` makes vectors `[H]` of texts, with the
    adapter `name`, of `task`. Raises OptionError for no documents, and for an adapter that answers
    with something else than vectors.
    """
    if task is not None and not isinstance(task, Retrieval):
        raise OptionError(
            f"Adapter {name!r} is of the task {task.kind!r}, whose answers are no vectors to rank "
            f"by: take an adapter of retrieval, or none."
        )
    if not isinstance(query, str):
        raise OptionError(f"The query must be one text; this is {query!r}.")
    if isinstance(documents, str) or not len(documents):
        raise OptionError("There are no documents to rank: give a list of texts.")
    if top is not None and (type(top) is not int or top < 1):
        raise OptionError(f"top={top!r} must be a whole number, at least 1.")
    check_texts(documents)
    texts = list(dict.fromkeys([query, *documents]))
    vectors_NH = np.stack(embed(texts))
    lengths_N = np.linalg.norm(vectors_NH, axis=1)
    # A row at a time: a matrix product may give equal rows unequal cosines.
    cosines_N = (vectors_NH * vectors_NH[0]).sum(1) / np.maximum(lengths_N * lengths_N[0], 1e-12)
    score = dict(zip(texts, cosines_N.tolist(), strict=True))
    order = sorted(range(len(documents)), key=lambda place: -score[documents[place]])
    return [Ranked(place, documents[place], score[documents[place]]) for place in order[:top]]


def _cosine(other_H: Tensor, out_BH: Tensor) -> Tensor:
    from torch.nn.functional import cosine_similarity

    return cosine_similarity(out_BH.double(), other_H[None].to(out_BH.device), dim=1)


def _own(logits: Tensor, allowed: Tensor, smoothing: float) -> Tensor:
    """Cross entropy `[B]` of logits `[B, C]` with the diagonal, among the allowed ones."""
    import torch

    log_p = logits.masked_fill(~allowed, -torch.inf).log_softmax(1)
    every = -log_p.masked_fill(~allowed, 0.0).sum(1) / allowed.sum(1)
    return (smoothing - 1) * log_p.diagonal() + smoothing * every
