"""Where the sentences of a text are, by a simple rule that knows no language.

A sentence ends at a line break; after an end mark with what closes a quotation or a bracket, where
white space follows and then no lower-case letter; and after 。！？ whatever follows. A full stop
behind a single letter, as in "J. K. Nyerere", ends none. What the rule gets wrong (abbreviations,
Thai) is mended by giving a document as a list of its sentences.
"""

from __future__ import annotations

import re

_SPACED = ".!?…⁇⁈⁉‼؟۔।॥։።፧፨။។"
_UNSPACED = "。！？｡"
_CLOSING = r"\"'”’»›)\]】」』）"
_END = re.compile(
    rf"\n|[{_UNSPACED}]+[{_SPACED}{_UNSPACED}{_CLOSING}]*|[{_SPACED}]+[{_CLOSING}]*(?=\s)"
)
_INITIAL = re.compile(r"(?:^|[\s.(])[^\W\d_]$")


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence, in characters, without white space around it."""
    found, start = [], 0
    for mark in [*_END.finditer(text), None]:
        end = len(text) if mark is None else mark.end()
        if mark is not None and _goes_on(text, mark):
            continue
        piece = text[start:end]
        if stripped := piece.strip():
            begin = start + piece.index(stripped)
            found.append((begin, begin + len(stripped)))
        start = end
    return found


def _goes_on(text: str, mark: re.Match[str]) -> bool:
    """Whether the sentence goes on behind an end mark."""
    if mark.group() == "\n" or mark.group()[0] in _UNSPACED:
        return False
    rest = re.compile(r"\s*").match(text, mark.end())
    after = text[rest.end() : rest.end() + 1] if rest else ""
    initial = mark.group() == "." and _INITIAL.search(text[max(0, mark.start() - 2) : mark.start()])
    return after.islower() or bool(initial)
