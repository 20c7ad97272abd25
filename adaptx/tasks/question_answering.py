"""Extractive question answering: where in a passage the answer begins and ends.

[start, end]_S2 = hidden_SH W^T + b; softmax over the passage's tokens and the first token, which
stands for "not in this window"; loss = the mean of both cross entropies (Devlin et al. 2019,
section 4.3). A long passage is read in overlapping windows, the question before each; the likeliest
span of all is the answer: p = p(start) p(end).

S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptx.data.encode import TextEncoder
from adaptx.data.records import Passage
from adaptx.data.windows import Input, Window, sliding
from adaptx.errors import DataError, OptionError
from adaptx.tasks.base import IGNORED, TOKENS, Task
from adaptx.tasks.target import Reading, Target

if TYPE_CHECKING:
    from torch import Tensor

    from adaptx.data.swaps import Swapper

START, END = 1, 2  # bits of a token's target; 0: it is neither


@dataclass(frozen=True)
class Span:
    """An answer: `passage[start:end]`, in characters; an empty one: the passage has none."""

    text: str
    start: int
    end: int
    score: float

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.text or '(no answer)'}\t{self.score:.3f}"


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """The span of a passage that answers a question: reads (question, passage).

    `longest` is how many tokens an answer may have. `unanswerable` lets the answer be none; `fit`
    sets it where the training data has questions without an answer.
    """

    longest: int = 30
    unanswerable: bool = False
    labels: tuple[str, ...] = ("start", "end")
    pooling: str = TOKENS

    kind = "question-answering"
    hub = "question-answering"
    record = Passage
    chooses = False
    smooths = False
    two_texts = True
    slides = True
    needs = "A question and its passage are needed, as (question, passage) or with --passage,"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        self.check_pooling((TOKENS,))
        if self.labels != ("start", "end"):
            raise OptionError("The labels of question answering are start and end.")
        if type(self.longest) is not int or self.longest < 1:
            raise OptionError(f"longest={self.longest!r} must be a whole number, at least 1.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Words in common, and answers that are the same (adaptx.evaluation.questions)."""
        return "f1", "exact_match"

    @property
    def reads(self) -> str:
        """What it does, in words."""
        return "It reads a question and a passage, and finds the answer in the passage"

    def fit(self, train: Sequence[Passage], dev: Sequence[Passage] = ()) -> QuestionAnswering:
        """The task; DataError where no question has an answer."""
        if not train:
            raise DataError("there are no training examples.")
        if not any(record.answers for record in train):
            raise DataError("no question has an answer.", train[0].path or None)
        none = any(not record.answers for record in train)
        return replace(self, unanswerable=self.unanswerable or none)

    def inputs(self, records: Sequence[Passage]) -> list[Input]:
        """The question and the passage."""
        return [(record.question, record.context) for record in records]

    def windows(
        self, text: TextEncoder, prefix: str, inputs: Sequence[Input], max_length: int | None = None
    ) -> list[list[Window]]:
        """Overlapping windows of the passage, the question before each."""
        self.check_inputs(inputs)
        return sliding(text, prefix, inputs, max_length)

    def targets(
        self, records: Sequence[Passage], windows: Sequence[Sequence[Window]] = ()
    ) -> list[np.ndarray]:
        """int64 `[S]` of each window: START and END bits; IGNORED where no answer can be."""
        found = []
        for record, its_windows in zip(records, windows, strict=True):
            for window in its_windows:
                target = np.full(len(window.ids), IGNORED, np.int64)
                target[answer_places(window)] = 0
                place = None
                if record.answers:
                    text, start = record.answers[0]
                    place = span_tokens(window, (start, start + len(text)))
                first, last = place or (0, 0)
                target[first] |= START
                target[last] |= END
                found.append(target)
        return found

    def losses(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Logits `[B, S, 2]`, targets int64 `[B, S]` -> fp32 `[B]`."""
        from torch.nn.functional import cross_entropy

        allowed = targets != IGNORED
        total = 0
        for column, bit in enumerate((START, END)):
            logits = outputs[..., column].float().masked_fill(~allowed, -1e4)
            place = ((targets & bit) > 0).logical_and(allowed).int().argmax(1)
            total = total + cross_entropy(logits, place, reduction="none")
        return total / 2

    def answer(self, one: Input, windows: Sequence[Window], outputs: Sequence[np.ndarray]) -> Span:
        """The likeliest span of all windows."""
        best, nothing = Span("", 0, 0, 0.0), 1.0
        for window, logits_S2 in zip(windows, outputs, strict=True):
            assert window.offsets is not None
            places = answer_places(window)
            inside = places[1:]
            start, end = (_log_softmax(logits_S2[places, column]) for column in (0, 1))
            nothing = min(nothing, float(np.exp(start[0] + end[0])))
            if not len(inside):
                continue
            scores = start[1:, None] + end[None, 1:]
            scores[~_spans(len(inside), self.longest)] = -np.inf
            first, last = np.unravel_index(scores.argmax(), scores.shape)
            score = float(np.exp(scores[first, last]))
            if score > best.score:
                begin = int(window.offsets[inside[first], 0])
                stop = int(window.offsets[inside[last], 1])
                text = one[1][begin:stop]
                begin += len(text) - len(text.lstrip())
                best = Span(text.strip(), begin, begin + len(text.strip()), score)
        if self.unanswerable and nothing > best.score:
            return Span("", 0, 0, nothing)
        return best

    def target(
        self, one: Any, answer: Span, label: str | None = None, word: str | None = None
    ) -> Target:
        """The log-odds of a span of the passage."""
        passage = one[1]
        if label is None:
            span = (answer.start, answer.end) if answer.text else None
            return Target(answer.text or "(no answer)", span=span, which=1)
        start = passage.find(label) if label.strip() else -1
        if start < 0:
            raise OptionError(
                f"label={label!r} doesn't stand in the passage, whose spans are answers."
            )
        return Target(label, span=(start, start + len(label)), which=1)

    def reading(
        self, target: Target, windows: Sequence[Window], outputs: Sequence[np.ndarray]
    ) -> Reading | None:
        """The likeliest window's span; that there is none is read in the least sure window."""
        import torch

        found: list[tuple[float, Reading]] = []
        for number, window in enumerate(windows):
            tokens = (0, 0) if target.span is None else span_tokens(window, target.span)
            if tokens is not None:
                score = partial(_span_odds, answer_places(window), tokens)
                value = float(score(torch.from_numpy(outputs[number])[None]))
                found.append((value, Reading(number, score)))
        found.sort(key=lambda one: one[0], reverse=target.span is not None)
        return found[0][1] if found else None

    def change(self, before: Span, after: Span, swap: Swapper) -> tuple[bool | None, float | None]:
        """Whether the span is another than the first one, swapped; the change of the score."""
        return after.text != swap(before.text), after.score - before.score


def answer_places(window: Window) -> np.ndarray:
    """The tokens among which an answer begins and ends: the first ("not here"), the passage's."""
    assert window.offsets is not None
    return np.concatenate([[0], np.flatnonzero(window.offsets[:, 1] >= 0)])


def span_tokens(window: Window, span: tuple[int, int]) -> tuple[int, int] | None:
    """The first and the last token of an answer's characters, where the window has all of it."""
    assert window.offsets is not None
    inside = answer_places(window)[1:]
    start, end = span
    starts, ends = window.offsets[inside].T
    first = int(np.searchsorted(ends, start, side="right"))
    last = int(np.searchsorted(starts, end, side="left")) - 1
    if first > last or first >= len(inside) or last < 0:
        return None
    if starts[first] > start + 1 or ends[last] < end:  # its ends stand elsewhere
        return None
    return int(inside[first]), int(inside[last])


def _span_odds(places: np.ndarray, tokens: tuple[int, int], out_BS2: Tensor) -> Tensor:
    log_p_B: Any = 0
    for column, token in enumerate(tokens):
        at = int(np.flatnonzero(places == token)[0])
        log_p_B = log_p_B + out_BS2[:, places, column].double().log_softmax(1)[:, at]
    log_p_B = log_p_B.clamp(max=-1e-12)
    odds: Tensor = log_p_B - (-log_p_B.expm1()).log()
    return odds


def _spans(tokens: int, longest: int) -> np.ndarray:
    """Bool `[tokens, tokens]`: which (first, last) make a span."""
    length = np.arange(tokens)[None] - np.arange(tokens)[:, None]
    found: np.ndarray = (length >= 0) & (length < longest)
    return found


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x.astype(np.float64) - x.max()
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return found
