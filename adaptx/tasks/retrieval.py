"""Texts as vectors that are near each other where they belong together: search, matching.

v = pooled / |pooled|, no head. Loss: of each pair (a, b) of a micro-batch, the cross entropy of
a's cosines to every b, over the temperature, with its own b as the target, and the other way round
("in-batch negatives": Henderson et al. 2017, arXiv 1705.00652; both ways: Radford et al. 2021,
arXiv 2103.00020). With `dimensions`, the mean over vectors cut to each of them, so that a cut
vector serves too (Kusupati et al. 2022, "Matryoshka", arXiv 2205.13147).

A larger micro-batch is a harder task: `accumulate` and more processes make it smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptx.data.encode import TextEncoder
from adaptx.data.records import Pair
from adaptx.data.windows import Input, Window, whole
from adaptx.errors import DataError, OptionError
from adaptx.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor


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
    parts = 2
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

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of each first text's search among all second ones."""
        return "mrr", "recall_at_1", "recall_at_10", "ndcg_at_10"

    @property
    def reads(self) -> str:
        """What it does, in words."""
        return "It reads a text and answers with a vector, near those of texts that belong to it"

    def fit(self, train: Sequence[Pair], dev: Sequence[Pair] = ()) -> Retrieval:
        """The task; DataError where there is only one pair."""
        if len(train) < 2:
            raise DataError("there is less than two pairs: each is a wrong answer for the others.")
        return self

    def inputs(self, records: Sequence[Pair]) -> list[Input]:
        """Both texts of each pair."""
        return [(record.text, record.other) for record in records]

    def windows(
        self, text: TextEncoder, prefix: str, inputs: Sequence[Input], max_length: int | None = None
    ) -> list[list[Window]]:
        """One window of a text; two, each by itself, of a pair."""
        texts = [(one,) if isinstance(one, str) else tuple(one) for one in inputs]
        flat = whole(text, prefix, [one for each in texts for one in each], max_length)
        found, at = [], 0
        for each in texts:
            found.append(flat[at : at + len(each)])
            at += len(each)
        return found

    def targets(
        self, records: Sequence[Pair], windows: Sequence[Sequence[Window]] = ()
    ) -> np.ndarray:
        """int64 `[rows]`, all 0: a pair's target is its own second text."""
        return np.zeros(len(records), np.int64)

    def losses(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Vectors `[2 B, H]`, of each pair after another -> fp32 `[B]`."""
        import torch
        from torch.nn.functional import cross_entropy, normalize

        pairs = outputs.float().unflatten(0, (-1, 2))
        aims = torch.arange(len(pairs), device=outputs.device)
        total = 0
        sizes = self.dimensions or (outputs.shape[-1],)
        for size in sizes:
            a_BH, b_BH = normalize(pairs[..., :size], dim=-1).unbind(1)
            logits_BB = a_BH @ b_BH.T / self.temperature
            for way in (logits_BB, logits_BB.T):
                loss = cross_entropy(way, aims, reduction="none", label_smoothing=smoothing)
                total = total + loss / (2 * len(sizes))
        return total

    def answer(self, one: Input, windows: Sequence[Window], outputs: Sequence[np.ndarray]) -> Any:
        """A text's vector, fp32 `[H]`, of length 1; of a pair, both: `[2, H]`."""
        vectors = np.stack([x / max(np.linalg.norm(x), 1e-12) for x in outputs])
        return vectors[0] if isinstance(one, str) else vectors
