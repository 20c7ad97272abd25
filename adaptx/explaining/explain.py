"""From an adapter and a text to what its answer rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptx.data.windows import Window, located
from adaptx.errors import OptionError
from adaptx.explaining.words import Word, shares, texts_of, without, words_of
from adaptx.tasks.target import Target

if TYPE_CHECKING:
    from adaptx.adapters.adapter import Adapter
    from adaptx.encoder.encoder import Encoder
    from adaptx.explaining.changes import SiteChange

STEPS = 64  # points of the integral
_CLOSE = 0.05  # a gap of this share of what is to be explained is worth a word


@dataclass(frozen=True)
class Part:
    """A word or token of the input, and what it contributes to the score.

    which, start, end  `texts[which][start:end]`; -1s for a special token or the prefix
    gradients          by integrated gradients; None for a word that the window hasn't
    left_out           the score, less that of the input without the word: above 0 where the word
                       speaks for the answer. None of tokens, and where nothing can be scored then
    left_out_probability  the same of the probability, where the score is log-odds
    """

    text: str
    which: int
    start: int
    end: int
    gradients: float | None
    left_out: float | None = None
    left_out_probability: float | None = None


@dataclass(frozen=True)
class Explanation:
    """What one answer of an adapter rests on.

    label, unit   what is explained, and in what: log-odds, score or cosine
    score         its value; `probability` where it is log-odds
    baseline      its value with every token of the text replaced by padding
    gap           score - baseline - the sum of the tokens' contributions
    window        which of the `windows` that the text is read in the score is read from
    layers        each layer's relative change by the adapter, from the first
    sites         each site's
    """

    adapter: str
    task: str
    texts: tuple[str, ...]
    answer: str
    label: str
    unit: str
    score: float
    probability: float | None
    baseline: float
    steps: int
    gap: float
    window: int
    windows: int
    words: tuple[Part, ...]
    tokens: tuple[Part, ...]
    layers: tuple[float, ...]
    sites: tuple[SiteChange, ...]

    @property
    def close(self) -> bool:
        """Whether the gap is small beside what there is to explain."""
        return abs(self.gap) <= _CLOSE * max(abs(self.score - self.baseline), 0.01)

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def explain(
    encoder: Encoder,
    adapter: Adapter,
    text: Any,
    *,
    label: str | None = None,
    word: str | None = None,
    steps: int = STEPS,
    batch_size: int = 32,
) -> Explanation:
    """What an adapter's answer to a text (or two) rests on: words, tokens, layers and sites.

    text   as `Encoder.predict` takes it: a text, (text, other) where two are read, or, for tagging,
           a list of words
    label  which label, tag, span of a passage, or sentence is explained; None: the answer, of a
           summary its surest sentence
    word   for tagging, the word whose tag it is, or its number from 1; None: the first of the
           surest entity, else of the text
    steps  points of the integral that integrated gradients stand on

    Words are weighed in two ways: by integrated gradients (adaptx.explaining.gradients), and by
    leaving each out of the text. Raises OptionError for what can't be explained: an adapter whose
    answer has no score, a text without words, an unknown label or word.
    """
    from adaptx.explaining.changes import changes
    from adaptx.explaining.gradients import integrated_gradients

    if type(steps) is not int or steps < 1:
        raise OptionError(f"steps={steps!r} must be a whole number, at least 1.")
    task: Any = adapter.task
    one = text
    if isinstance(text, (list, tuple)):
        one = list(text) if task is not None and task.listed else tuple(text)
    (answer,) = encoder.predict([one], adapter)
    if word is not None and not (task is not None and task.by_word):
        raise OptionError("A word is chosen where words are tagged: this adapter tags none.")
    if task is None:
        raise OptionError("This adapter answers with a vector, which has no score to explain.")
    target = task.target(one, answer, label, word)
    words = words_of(one, encoder.text.tokenizer)
    if not task.has_head:  # the second text's vector is what the first is held against
        words = [word for word in words if word.which == 0]
    if not words:
        raise OptionError("The text has no word: there is nothing that its answer could rest on.")

    windows, outputs = _read(encoder, adapter, [one], batch_size)[0]
    found = task.reading(target, windows, outputs)
    if found is None:
        raise OptionError(f"No token stands for {target.label}, so its score can't be read.")
    window = windows[found.number]
    texts = texts_of(one)
    together = len(texts) == 2 and task.has_head
    read = (texts[0], texts[1]) if together else texts[0]
    places_S3 = located(encoder.text, adapter.prefix, read, window)
    whole = integrated_gradients(
        encoder,
        adapter,
        window.ids,
        places_S3[:, 0] >= 0,
        found.score,
        steps=steps,
        batch_size=batch_size,
    )
    shares_SW = shares(words, places_S3)
    there = np.asarray(shares_SW.any(axis=0))
    less = _left_out(encoder, adapter, one, target, words, there, batch_size)
    by_word = whole.tokens_S @ shares_SW
    layers, sites = changes(encoder, adapter, window.ids)
    tokenizer = encoder.text.tokenizer
    return Explanation(
        adapter=adapter.name,
        task=task.kind,
        texts=texts,
        answer=" ".join(str(answer).split()) if not isinstance(answer, np.ndarray) else "vectors",
        label=target.label,
        unit=target.unit,
        score=whole.score,
        probability=target.probability(whole.score),
        baseline=whole.baseline,
        steps=steps,
        gap=whole.gap,
        window=found.number + 1,
        windows=len(windows) if task.has_head else 1,
        words=tuple(
            _part(word, float(by_word[i]) if there[i] else None, whole.score, less[i], target)
            for i, word in enumerate(words)
        ),
        tokens=tuple(
            Part(str(tokenizer.id_to_token(id_)), which, start, end, float(value))
            for id_, (which, start, end), value in zip(
                window.ids, places_S3.tolist(), whole.tokens_S, strict=True
            )
        ),
        layers=tuple(layers),
        sites=tuple(sites),
    )


def _part(
    word: Word, gradients: float | None, score: float, less: float | None, target: Target
) -> Part:
    left_out = change = None
    if less is not None:
        left_out = score - less
        before, after = target.probability(score), target.probability(less)
        change = before - after if before is not None and after is not None else None
    return Part(word.text, word.which, word.start, word.end, gradients, left_out, change)


def _left_out(
    encoder: Encoder,
    adapter: Adapter,
    one: Any,
    target: Target,
    words: Sequence[Word],
    there: np.ndarray,
    batch_size: int,
) -> list[float | None]:
    """The target's score on the input without each word; None where it has none then."""
    found: list[float | None] = [None] * len(words)
    inputs, targets, places = [], [], []
    for place, word in enumerate(words):
        shorter, gone = without(one, words, place)
        shifted = target.moved(word.which, gone)
        if there[place] and shifted is not None:
            inputs.append(shorter)
            targets.append(shifted)
            places.append(place)
    read = _read(encoder, adapter, inputs, batch_size)
    for place, shifted, (windows, outputs) in zip(places, targets, read, strict=True):
        found[place] = _score(adapter, shifted, windows, outputs)
    return found


def _score(
    adapter: Adapter, target: Target, windows: Sequence[Window], outputs: Sequence[np.ndarray]
) -> float | None:
    import torch

    task: Any = adapter.task
    found = task.reading(target, windows, outputs)
    if found is None:
        return None
    return float(found.score(torch.from_numpy(outputs[found.number])[None]))


class _Unanswered:
    """An adapter that answers with what an answer is made of."""

    def __init__(self, adapter: Adapter):
        self.adapter = adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self.adapter, name)

    def answer(
        self, one: Any, windows: Sequence[Window], outputs: Sequence[np.ndarray]
    ) -> tuple[Sequence[Window], Sequence[np.ndarray]]:
        """The windows, and the outputs of each."""
        return windows, outputs


def _read(encoder: Encoder, adapter: Adapter, inputs: Sequence[Any], batch_size: int) -> list[Any]:
    """(windows, outputs) of each input, as `Encoder.predict` reads it."""
    unanswered: Any = _Unanswered(adapter)
    return encoder.predict(inputs, unanswered, batch_size=batch_size)
