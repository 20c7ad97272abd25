"""Extractive summarization: the sentences of a document that say most of it.

logit of a sentence = the mean over its tokens of (w . h_S + b) = w . (its mean state) + b, in the
context of the window (as Liu & Lapata 2019, arXiv 1908.08345, with the mean in the place of a [CLS]
before each); loss = binary cross entropy, its mean over the sentences of a window. A document
longer than the encoder reads goes through it in overlapping windows; a sentence belongs to the
window that has most of its tokens. The answer is the best sentences, in the document's order.

B windows, S tokens, N sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptx.data.encode import TextEncoder
from adaptx.data.records import Document
from adaptx.data.sentences import sentence_spans
from adaptx.data.windows import Window, sliding
from adaptx.errors import DataError, OptionError
from adaptx.tasks.base import IGNORED, TOKENS, Task
from adaptx.tasks.target import Reading, Target

if TYPE_CHECKING:
    from torch import Tensor

    from adaptx.data.swaps import Swapper

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Sentence:
    """A sentence of a document, `text[start:end]` in characters, and how surely it belongs."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Summary:
    """The answer to a document: its best sentences, in its order."""

    sentences: tuple[Sentence, ...]

    @property
    def text(self) -> str:
        """The sentences, with spaces between them."""
        return " ".join(sentence.text for sentence in self.sentences)

    def to_json(self) -> dict[str, Any]:
        """The sentences by name."""
        return {"summary": [asdict(sentence) for sentence in self.sentences]}

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Summarization(Task):
    """The best `length` sentences of a document: a text, or a list of its sentences."""

    length: int = 3
    labels: tuple[str, ...] = ("summary",)
    pooling: str = TOKENS

    kind = "extractive-summarization"
    hub = "summarization"
    record = Document
    slides = True
    listed = True
    chooses = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        self.check_pooling((TOKENS,))
        if self.labels != ("summary",):
            raise OptionError("The label of extractive summarization is summary.")
        if type(self.length) is not int or self.length < 1:
            raise OptionError(f"length={self.length!r} must be a whole number, at least 1.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """F1 of words, of pairs of words and of their sequence in common with the reference."""
        return "rouge_1", "rouge_2", "rouge_l"

    @property
    def reads(self) -> str:
        """What it does, in words."""
        return f"It reads a document and finds the {self.length} sentences that say most of it"

    def fit(self, train: Sequence[Document], dev: Sequence[Document] = ()) -> Summarization:
        """The task; DataError where no sentence is in a summary, or all are."""
        if not train:
            raise DataError("there are no training examples.")
        marks = {mark for record in train for mark in record.chosen}
        if len(marks) < 2:
            which = "every" if marks == {True} else "no"
            raise DataError(
                f"{which} sentence belongs to a summary, so there is nothing to learn.",
                train[0].path or None,
            )
        return self

    def inputs(self, records: Sequence[Document]) -> list[Any]:
        """The sentences of each document."""
        return [list(record.sentences) for record in records]

    def windows(
        self, text: TextEncoder, prefix: str, inputs: Sequence[Any], max_length: int | None = None
    ) -> list[list[Window]]:
        """Overlapping windows, with offsets."""
        return sliding(text, prefix, [_spans(one)[0] for one in inputs], max_length)

    def targets(
        self, records: Sequence[Document], windows: Sequence[Sequence[Window]] = ()
    ) -> list[np.ndarray]:
        """int64 `[S]` of each window: twice the number of the token's sentence, and 1 more where it
        belongs to the summary; IGNORED for tokens of another window's sentence, or of none.
        """
        found = []
        for record, its_windows in zip(records, windows, strict=True):
            _, spans = _spans(list(record.sentences))
            chosen = np.array(record.chosen, np.int64)
            for numbers in owned(spans, its_windows):
                found.append(np.where(numbers < 0, IGNORED, 2 * numbers + chosen[numbers]))
        return found

    def losses(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Outputs `[B, S, 1]`, targets int64 `[B, S]` -> the mean over each window's sentences."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        places = targets != IGNORED
        numbers, marks = targets[places] // 2, (targets[places] % 2).float()
        sentences = int(numbers.max()) + 1 if len(numbers) else 1
        key = places.nonzero()[:, 0] * sentences + numbers
        size = len(targets) * sentences
        zeros = torch.zeros(size, device=outputs.device)
        counts = torch.bincount(key, minlength=size)
        logits = zeros.index_add(0, key, outputs[..., 0].float()[places]) / counts.clamp(min=1)
        gold = zeros.index_add(0, key, marks) / counts.clamp(min=1)
        gold = gold * (1 - smoothing) + smoothing / 2
        losses = binary_cross_entropy_with_logits(logits, gold, reduction="none")
        there = (counts > 0).view(-1, sentences)
        return (losses.view(-1, sentences) * there).sum(1) / there.sum(1).clamp(min=1)

    def answer(self, one: Any, windows: Sequence[Window], outputs: Sequence[np.ndarray]) -> Summary:
        """The likeliest sentences; one that became no token is never among them."""
        text, spans = _spans(one)
        logits = np.full(len(spans), -np.inf)
        for numbers, logits_S1 in zip(owned(spans, windows), outputs, strict=True):
            for number in np.unique(numbers[numbers >= 0]):
                logits[number] = logits_S1[numbers == number, 0].mean(dtype=np.float64)
        best = np.argsort(-logits, kind="stable")[: self.length]
        scores = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
        found = []
        for i in sorted(i for i in best if np.isfinite(logits[i])):
            start, end = spans[i]
            found.append(Sentence(text[start:end], start, end, float(scores[i])))
        return Summary(tuple(found))

    def target(
        self, one: Any, answer: Summary, label: str | None = None, word: str | None = None
    ) -> Target:
        """The log-odds of a sentence, of the surest."""
        if not isinstance(one, str):
            raise OptionError("A document is explained as one text: give that, not its sentences.")
        if label is None:
            best = max(answer.sentences, key=lambda sentence: sentence.score, default=None)
            if best is None:
                raise OptionError("The document has no sentence.")
            return Target(best.text, span=(best.start, best.end))
        spans = {one[slice(*span)]: span for span in sentence_spans(one)}
        if label not in spans:
            raise OptionError(f"label={label!r} is no sentence of the document.")
        return Target(label, span=spans[label])

    def reading(
        self, target: Target, windows: Sequence[Window], outputs: Sequence[np.ndarray]
    ) -> Reading | None:
        """The mean over the sentence's tokens."""
        assert target.span is not None
        for number, sentences in enumerate(owned([target.span], windows)):
            if len(places := np.flatnonzero(sentences == 0)):
                return Reading(number, partial(_mean_at, places))
        return None

    def change(
        self, before: Summary, after: Summary, swap: Swapper
    ) -> tuple[bool | None, float | None]:
        """Whether the sentences are others than the first ones, swapped."""
        chosen = [swap(sentence.text) for sentence in before.sentences]
        return chosen != [sentence.text for sentence in after.sentences], None


def owned(spans: Spans, windows: Sequence[Window]) -> list[np.ndarray]:
    """int64 `[S]` of each window: which sentence a token is of; -1 for none, and for sentences of
    which another window has more.
    """
    if not spans:
        return [np.full(len(window.ids), -1) for window in windows]
    starts, ends = np.array(spans, np.int64).T
    found = []
    for window in windows:
        assert window.offsets is not None
        last = window.offsets[:, 1].astype(np.int64) - 1  # a token may begin with a space
        numbers = np.searchsorted(starts, last, side="right") - 1
        outside = (last < 0) | (numbers < 0) | (last >= ends[numbers])
        found.append(np.where(outside, -1, numbers))
    counts = [np.bincount(numbers[numbers >= 0], minlength=len(spans)) for numbers in found]
    owner = np.argmax(counts, axis=0)
    return [
        np.where((numbers >= 0) & (owner[numbers] == i), numbers, -1)
        for i, numbers in enumerate(found)
    ]


def _mean_at(places: np.ndarray, out_BS1: Tensor) -> Tensor:
    found: Tensor = out_BS1[:, places, 0].double().mean(1)
    return found


def _spans(one: Any) -> tuple[str, list[tuple[int, int]]]:
    """A document's text, and where its sentences are; a list of them is joined by spaces."""
    if isinstance(one, str):
        return one, sentence_spans(one)
    if not isinstance(one, list) or not all(isinstance(s, str) for s in one):
        raise OptionError(
            f"A text, or a list of its sentences, is needed for a summary; this is {one!r}."
        )
    spans, at = [], 0
    for sentence in one:
        spans.append((at, at + len(sentence)))
        at += len(sentence) + 1
    return " ".join(one), spans
