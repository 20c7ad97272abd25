"""The words of a text: where they are, and which token stands for each.

S tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from adaptx.data.tokens import is_unspaced_letter
from adaptx.data.windows import Window
from adaptx.errors import OptionError

Spans = Sequence[tuple[int, int]]


def word_spans(one: str | Sequence[str], starts: Iterable[int] = ()) -> list[tuple[int, int]]:
    """Where the words are, in characters: those of a list, joined by spaces, or those of a text.

    In a text, white space ends a word; a punctuation mark or symbol is one of its own, but inside
    a word (ng'ombe, 3.5) it is a part of it. In a script without spaces between words a word begins
    wherever a token does: `starts` are the tokens' first characters, in their order.
    """
    spans: list[tuple[int, int]] = []
    if not isinstance(one, str):
        at = 0
        for word in one:
            spans.append((at, at + len(word)))
            at += len(word) + 1
        return spans
    cuts = {at for at in starts if 0 < at < len(one) and _is_between_words(one[at - 1], one[at])}
    start = None
    for i, character in enumerate(one):
        mark = unicodedata.category(character)[0] in "PS"
        inside = start is not None and mark and i + 1 < len(one) and _is_of_word(one[i + 1])
        mark = mark and not (inside and _is_of_word(one[i - 1]))
        if start is not None and (mark or character.isspace() or i in cuts):
            spans.append((start, i))
            start = None
        if mark:
            spans.append((i, i + 1))
        elif start is None and not character.isspace():
            start = i
    if start is not None:
        spans.append((start, len(one)))
    return spans


def _is_of_word(character: str) -> bool:
    """Whether it is a letter, a digit or a combining mark, such as an accent, of a script with
    spaces between words: what a punctuation mark beside it may be a part of.
    """
    combining = unicodedata.category(character)[0] == "M"
    return (character.isalnum() or combining) and not is_unspaced_letter(character)


def _is_between_words(before: str, after: str) -> bool:
    """Whether a token's start between these characters is a word's: in a script without spaces, but
    never before a combining mark.
    """
    unspaced = is_unspaced_letter(before) or is_unspaced_letter(after)
    return unspaced and unicodedata.category(after)[0] != "M"


def token_starts(windows: Sequence[Window]) -> list[int]:
    """The first characters of a text's tokens, in their order."""
    found: set[int] = set()
    for window in windows:
        assert window.offsets is not None
        found.update(window.offsets[window.offsets[:, 1] >= 0, 0].tolist())
    return sorted(found)


def first_tokens(spans: Spans, window: Window, first: bool) -> Iterable[tuple[int, int]]:
    """(word, token) for each word whose first token stands in the window.

    `first`: whether the window is its row's first. In another, a word may have begun before it.
    """
    assert window.offsets is not None
    inside = np.flatnonzero(window.offsets[:, 1] >= 0)
    starts, ends = window.offsets[inside].T
    begins = np.array([start for start, _ in spans], np.int64)
    for word, at in enumerate(np.searchsorted(ends, begins, side="right")):
        if at == len(inside) or starts[at] >= spans[word][1]:
            continue
        if at or first or starts[at] <= begins[word]:
            yield word, int(inside[at])


def reading_tokens(spans: Spans, windows: Sequence[Window]) -> list[tuple[int, int]]:
    """(number of the window, token) that each word's tag is read from: its first token, where it
    has the most context; (-1, -1) for a word that became no token.
    """
    found, context = [(-1, -1)] * len(spans), [-1] * len(spans)
    for number, window in enumerate(windows):
        last = len(window.ids) - 1
        for word, token in first_tokens(spans, window, number == 0):
            left = token if number else last  # nothing stands before the first window
            right = last - token if number < len(windows) - 1 else last
            if min(left, right) > context[word]:
                context[word], found[word] = min(left, right), (number, token)
    return found


def text_of(one: str | Sequence[str]) -> str:
    """A text as it is, or a list's words with spaces between them; OptionError for another."""
    if isinstance(one, str):
        return one
    if not isinstance(one, list) or not all(isinstance(w, str) for w in one):
        raise OptionError(f"A text, or a list of words, is needed for tagging; this is {one!r}.")
    return " ".join(one)
