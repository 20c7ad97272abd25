"""The words of an input: where they are, which tokens they have, the input without one of them.

Words are those that tagging reads (adaptx.tasks.words.word_spans): in a script
without spaces between them, the tokens stand for words. S tokens, W words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from adaptx.tasks.target import Span
from adaptx.tasks.words import text_of, word_spans


@dataclass(frozen=True)
class Word:
    """`texts[which][start:end]`, one of the input's texts."""

    which: int
    start: int
    end: int
    text: str


def texts_of(one: Any) -> tuple[str, ...]:
    """The text or both texts of an input; a list of words is one text."""
    return tuple(one) if isinstance(one, tuple) else (text_of(one),)


def words_of(one: Any, tokenizer: Tokenizer) -> list[Word]:
    """The words of an input, in their order."""
    found = []
    for which, text in enumerate(texts_of(one)):
        if isinstance(one, list):
            spans = word_spans(one)
        else:
            tokens = tokenizer.encode(text, add_special_tokens=False).offsets
            spans = word_spans(text, (start for start, _ in tokens))
        found += [Word(which, start, end, text[start:end]) for start, end in spans]
    return found


def shares(words: Sequence[Word], places_S3: np.ndarray) -> np.ndarray:
    """How much of each token belongs to each word, fp64 `[S, W]`: by characters, white space none.

    `places_S3` is what adaptx.data.windows.located gives. A token that has no word's character
    (the mark of a space) belongs to the word behind it, or to the last.
    """
    which_W, starts_W, ends_W = (
        np.array([getattr(word, name) for word in words], np.int64)
        for name in ("which", "start", "end")
    )
    found = np.zeros((len(places_S3), len(words)))
    for row, (which, start, end) in zip(found, places_S3, strict=True):
        here = which_W == which
        common = np.minimum(end, ends_W) - np.maximum(start, starts_W)
        row[:] = np.where(here, np.maximum(common, 0), 0)
        if row.any():
            row /= row.sum()
        elif here.any():
            behind = np.flatnonzero(here & (starts_W >= end))
            row[behind[0] if len(behind) else np.flatnonzero(here)[-1]] = 1
    return found


def without(one: Any, words: Sequence[Word], place: int) -> tuple[Any, Span]:
    """The input without its word number `place`, and which characters of the word's text are gone.

    White space goes with the word, so that as much is left as stood between any two.
    """
    word = words[place]
    texts = list(texts_of(one))
    text, start, end = texts[word.which], word.start, word.end
    begins = start == 0 or text[start - 1].isspace()
    if begins and text[end : end + 1].isspace():
        end += 1
    elif begins and start > 0 and not text[end : end + 1].isalnum():  # the end, or a mark
        start -= 1
    if isinstance(one, list):
        return [*one[:place], *one[place + 1 :]], (start, end)
    texts[word.which] = text[:start] + text[end:]
    return (tuple(texts) if isinstance(one, tuple) else texts[0]), (start, end)
