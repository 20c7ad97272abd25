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
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptx.data.sentences import sentence_spans
from adaptx.data.windows import Window
from adaptx.errors import OptionError, choices
from adaptx.explaining.words import Span, moved
from adaptx.tasks import (
    Classification,
    MultiLabel,
    QuestionAnswering,
    Retrieval,
    Similarity,
    Summarization,
    Task,
    TokenClassification,
)
from adaptx.tasks.question_answering import answer_places, span_tokens
from adaptx.tasks.summarization import owned
from adaptx.tasks.token_classification import reading_tokens, text_of

if TYPE_CHECKING:
    from torch import Tensor

LOG_ODDS = "log-odds"


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


def choose(task: Task | None, one: Any, answer: Any, label: str | None, word: str | None) -> Target:
    """The target that `label` and `word` ask for, without them the answer's own.

    Raises OptionError for a label, span or word that there isn't, and where there is no score.
    """
    if word is not None and not isinstance(task, TokenClassification):
        raise OptionError("A word is chosen where words are tagged: this adapter tags none.")
    if task is None or isinstance(task, Retrieval):
        if task is None or not isinstance(one, tuple):
            raise OptionError(
                "This adapter answers with a vector, which has no score to explain."
                + (
                    " Give a second text too: the cosine of both is explained."
                    if task is not None
                    else ""
                )
            )
        _no_label(label, "a cosine")
        return Target("cosine", "cosine")
    if isinstance(task, Similarity):
        _no_label(label, "a number")
        return Target(task.labels[0], "score")
    if isinstance(task, QuestionAnswering):
        return _span(one[1], answer, label)
    if isinstance(task, TokenClassification):
        return _tag(task, one, answer, label, word)
    if isinstance(task, Summarization):
        return _sentence(one, answer, label)
    if isinstance(task, Classification) and len(task.labels) < 2:
        raise OptionError("This adapter has one label, which is always its answer.")
    if label is None:
        label = answer.label if isinstance(task, Classification) else _likeliest(answer.scores)
    return Target(label, index=_index(task, label))


def reading(
    task: Task, target: Target, windows: Sequence[Window], outputs: Sequence[np.ndarray]
) -> Reading | None:
    """Where the target is read, of the windows of an input; None where no window holds it."""
    import torch

    if isinstance(task, Retrieval):
        return Reading(0, partial(_cosine, torch.from_numpy(outputs[1]).double()))
    if isinstance(task, Similarity):
        mean, scale = task.mean, task.scale
        return Reading(0, lambda out_BL: mean + scale * out_BL[:, 0].double())
    if isinstance(task, MultiLabel):
        return Reading(0, lambda out_BL: out_BL[:, target.index].double())
    if isinstance(task, TokenClassification):
        assert target.span is not None
        ((number, token),) = reading_tokens([target.span], windows)
        if token < 0:
            return None
        return Reading(number, lambda out_BSL: _log_odds(out_BSL[:, token], target.index))
    if isinstance(task, Summarization):
        assert target.span is not None
        for number, sentences in enumerate(owned([target.span], windows)):
            if len(places := np.flatnonzero(sentences == 0)):
                return Reading(number, lambda out_BSL: out_BSL[:, places, 0].double().mean(1))
        return None
    if isinstance(task, QuestionAnswering):
        found: list[tuple[float, Reading]] = []
        for number, window in enumerate(windows):
            tokens = (0, 0) if target.span is None else span_tokens(window, target.span)
            if tokens is not None:
                score = partial(_span_odds, answer_places(window), tokens)
                value = float(score(torch.from_numpy(outputs[number])[None]))
                found.append((value, Reading(number, score)))
        # The likeliest window's span is the answer; that there is none, the least sure window's.
        found.sort(key=lambda one: one[0], reverse=target.span is not None)
        return found[0][1] if found else None
    return Reading(0, lambda out_BL: _log_odds(out_BL, target.index))


def _log_odds(logits_BL: Tensor, index: int) -> Tensor:
    logits_BL = logits_BL.double()
    others = [i for i in range(logits_BL.shape[1]) if i != index]
    return logits_BL[:, index] - logits_BL[:, others].logsumexp(1)


def _span_odds(places: np.ndarray, tokens: tuple[int, int], out_BS2: Tensor) -> Tensor:
    log_p_B: Any = 0
    for column, token in enumerate(tokens):
        at = int(np.flatnonzero(places == token)[0])
        log_p_B = log_p_B + out_BS2[:, places, column].double().log_softmax(1)[:, at]
    log_p_B = log_p_B.clamp(max=-1e-12)
    odds: Tensor = log_p_B - (-log_p_B.expm1()).log()
    return odds


def _cosine(other_H: Tensor, out_BH: Tensor) -> Tensor:
    from torch.nn.functional import cosine_similarity

    return cosine_similarity(out_BH.double(), other_H[None].to(out_BH.device), dim=1)


def _index(task: Task, label: str) -> int:
    if label not in task.labels:
        raise OptionError(f"label={label!r} is none of this adapter's: {choices(task.labels)}.")
    return task.labels.index(label)


def _no_label(label: str | None, what: str) -> None:
    if label is not None:
        raise OptionError(f"label={label!r}: this adapter answers with {what}, which has no label.")


def _likeliest(scores: dict[str, float]) -> str:
    return max(scores, key=lambda label: scores[label])


def _span(passage: str, answer: Any, label: str | None) -> Target:
    if label is None:
        span = (answer.start, answer.end) if answer.text else None
        return Target(answer.text or "(no answer)", span=span, which=1)
    start = passage.find(label) if label.strip() else -1
    if start < 0:
        raise OptionError(f"label={label!r} doesn't stand in the passage, whose spans are answers.")
    return Target(label, span=(start, start + len(label)), which=1)


def _sentence(document: Any, answer: Any, label: str | None) -> Target:
    if not isinstance(document, str):
        raise OptionError("A document is explained as one text: give that, not its sentences.")
    if label is None:
        best = max(answer.sentences, key=lambda sentence: sentence.score, default=None)
        if best is None:
            raise OptionError("The document has no sentence.")
        return Target(best.text, span=(best.start, best.end))
    spans = {document[slice(*span)]: span for span in sentence_spans(document)}
    if label not in spans:
        raise OptionError(f"label={label!r} is no sentence of the document.")
    return Target(label, span=spans[label])


def _tag(
    task: TokenClassification, one: Any, answer: Any, label: str | None, word: str | None
) -> Target:
    spans = answer.spans
    if not spans:
        raise OptionError("The text has no word.")
    if word is None:
        entity = max(answer.entities, key=lambda e: e.score, default=None)
        place = next((i for i, s in enumerate(spans) if entity and s[0] == entity.start), 0)
    elif word in answer.words:
        place = answer.words.index(word)
    elif word.isdecimal() and 1 <= int(word) <= len(spans):
        place = int(word) - 1
    else:
        raise OptionError(
            f"word={word!r} is none of the text's ({choices(answer.words)}), nor the number of one."
        )
    label = label if label is not None else answer.tags[place]
    text = text_of(one)[slice(*spans[place])]
    if not label:
        raise OptionError(f"No token stands for {text!r}, so it has no tag to explain.")
    return Target(f"{label} at {text!r}", index=_index(task, label), span=spans[place])
