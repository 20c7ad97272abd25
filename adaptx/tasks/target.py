"""What is explained: one number of an adapter's answer, as a function of the head's outputs.

    classification, pairs   log-odds of a label: x_l - log sum exp of the others'
    multi-label             log-odds of a label, which is its output itself
    token-classification    log-odds of a tag at the first token of a word
    question-answering      log-odds of a span: log p - log(1 - p), p = p(start) p(end)
    extractive-summarization  log-odds of a sentence, the mean of its tokens' outputs
    similarity              the score, on the data's scale
    retrieval               the cosine of the first text's vector to the second's

Log-odds, as what adds up in an encoder's head is no probability: that is 1 / (1 + exp(-log-odds)).
B rows, S tokens, L outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adaptx.errors import OptionError, choices

if TYPE_CHECKING:
    from torch import Tensor

LOG_ODDS = "log-odds"
Span = tuple[int, int]  # of characters


@dataclass(frozen=True)
class Target:
    """One number of an answer.

    label  of a label, a tag, or a span's or sentence's text
    unit   LOG_ODDS, "score" or "cosine"
    index  the label's place among the task's
    span   characters: the tagged word's, the sentence's, or the answer's in its passage, None: no
           answer
    which  the input's text that `span` is in
    """

    label: str
    unit: str = LOG_ODDS
    index: int = 0
    span: Span | None = None
    which: int = 0

    def probability(self, score: float) -> float | None:
        """Of log-odds; None where the score is another number."""
        if self.unit != LOG_ODDS:
            return None
        return 1 / (1 + math.exp(-score)) if score > -700 else 0.0

    def moved(self, which: int, gone: Span) -> Target | None:
        """The target when characters are gone from a text; None where it went with them."""
        if self.span is None or which != self.which:
            return self
        span = moved(self.span, gone)
        return replace(self, span=span) if span else None


@dataclass(frozen=True)
class Reading:
    """Where a target is read: from the outputs of window `number`, `[B, L]` or `[B, S, L]`."""

    number: int
    score: Callable[[Tensor], Tensor]  # -> [B]


def moved(span: Span, gone: Span) -> Span | None:
    """Where a span is after `gone` was taken out of its text; None where nothing of it is left."""
    start, end = (at - min(max(at - gone[0], 0), gone[1] - gone[0]) for at in span)
    return (start, end) if start < end else None


def log_odds(logits_BL: Tensor, index: int) -> Tensor:
    """Of one of several labels, fp64 `[B]`."""
    logits_BL = logits_BL.double()
    others = [i for i in range(logits_BL.shape[1]) if i != index]
    return logits_BL[:, index] - logits_BL[:, others].logsumexp(1)


def index_of(labels: Sequence[str], label: str) -> int:
    """A label's place; OptionError for one that there isn't."""
    if label not in labels:
        raise OptionError(f"label={label!r} is none of this adapter's: {choices(labels)}.")
    return labels.index(label)


def no_label(label: str | None, what: str) -> None:
    """OptionError for a label that is asked for, of an answer that has none."""
    if label is not None:
        raise OptionError(f"label={label!r}: this adapter answers with {what}, which has no label.")
