"""What an encoder reads at once of a row: one or two texts as a window, or several that overlap.

S tokens of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adaptx.data.encode import TextEncoder, check_texts
from adaptx.errors import OptionError

OVERLAP = 96  # tokens that a window has in common with the one before
LEAST = 16  # tokens of a window, at least, that are of the text it slides over

Input = str | tuple[str, str]  # one text, or two that are read together


@dataclass(frozen=True, slots=True)
class Window:
    """Token ids with their special tokens, and where they stand.

    offsets  int32 `[S, 2]`: each token's characters in the row's text, in its second one where it
             has two; (-1, -1) for the others. None where nobody asked
    words    int32 `[S]`: the number of each token's word, as the tokenizer counts them; -1 likewise
    cut      tokens at the end of one of the row's texts that are read nowhere
    """

    ids: list[int]
    offsets: np.ndarray | None = None
    words: np.ndarray | None = None
    cut: int = 0


def check_inputs(inputs: Sequence[Any]) -> None:
    """Raise OptionError for what is neither a text nor two."""
    flat: list[Any] = []
    for one in inputs:
        two = isinstance(one, (tuple, list)) and len(one) == 2
        flat += one if two else [one]
    check_texts(flat)


def whole(
    text: TextEncoder, prefix: str, inputs: Sequence[Input], max_length: int | None = None
) -> list[Window]:
    """One window of each input, `prefix` before its first text; what is too long loses its end.

    Of two texts the longer one loses its own first. Raises OptionError as `TextEncoder.ids`.
    """
    check_inputs(inputs)
    found: dict[int, Window] = {}
    alone = [i for i, one in enumerate(inputs) if isinstance(one, str)]
    ids, cut = text.cut([f"{prefix}{inputs[i]}" for i in alone], max_length)
    for i, tokens, lost in zip(alone, ids, cut, strict=True):
        found[i] = Window(tokens, cut=lost)
    for i, one in enumerate(inputs):
        if not isinstance(one, str):
            found[i] = _two(text, prefix, *one, max_length)
    return [found[i] for i in range(len(inputs))]


def sliding(
    text: TextEncoder,
    prefix: str,
    inputs: Sequence[Input],
    max_length: int | None = None,
    overlap: int = OVERLAP,
) -> list[list[Window]]:
    """The windows of each input, with offsets: every token of its text is in at least one.

    Of two texts the second is slid over, and the first stands before each of its windows; it keeps
    at most half of a window, and the first window says how much was cut. Raises OptionError as
    `TextEncoder.ids`.
    """
    check_inputs(inputs)
    return [_slid(text, prefix, one, max_length, overlap) for one in inputs]


def located(text: TextEncoder, prefix: str, one: Input, window: Window) -> np.ndarray:
    """Where the tokens of a window of an input stand: int32 `[S, 3]` (text, start, end), in
    characters of the input's first (0) or second (1) text; -1s for special tokens and the prefix.

    A window itself keeps no more of this than its task needs, as most need nothing of it.
    """
    first, *others = (one,) if isinstance(one, str) else one
    tokenizer = text.tokenizer
    parts = [tokenizer.encode(each, add_special_tokens=False) for each in (prefix + first, *others)]
    offsets = [np.array(part.offsets, np.int32).reshape(-1, 2) for part in parts]
    offsets[0] = offsets[0] - len(prefix)
    frame = tokenizer.encode(*["a"] * len(parts)).sequence_ids
    begin, end = frame.index(0), len(window.ids) - frame[::-1].index(len(parts) - 1)
    found = np.full((len(window.ids), 3), -1, np.int32)

    def put(which: int, at: int, start: int, count: int) -> None:
        places = offsets[which][start : start + count]
        inside = places[:, 1] > 0  # the others are the prefix's
        found[at : at + count][inside, 0] = which
        found[at : at + count][inside, 1:] = np.maximum(places[inside], 0)

    if not others:
        start = _start(parts[0].ids, offsets[0], window, begin, end)
        put(0, begin, start or 0, end - begin)
        return found
    between = frame[begin : frame.index(1)].count(None)
    pairs = zip(parts[0].ids, window.ids[begin:end], strict=False)
    agree = next((i for i, (a, b) in enumerate(pairs) if a != b), len(parts[0].ids))
    for length in range(agree, -1, -1):  # less than agrees only where a text has a special token
        at = begin + length + between
        start = _start(parts[1].ids, offsets[1], window, at, end)
        if start is not None:
            put(0, begin, 0, length)
            put(1, at, start, end - at)
            break
    return found


def _start(ids: list[int], offsets: np.ndarray, window: Window, at: int, end: int) -> int | None:
    """Which of a text's tokens the window has at `at`, where it goes on to `end`; None: none."""
    block, count = window.ids[at:end], end - at
    if window.offsets is None:
        return 0 if ids[:count] == block else None
    known = window.offsets[at:end]
    there = known[:, 1] >= 0
    for start in range(len(ids) - count + 1):
        same = ids[start : start + count] == block
        if same and np.array_equal(np.maximum(offsets[start:][:count][there], 0), known[there]):
            return start
    return None


def _slid(
    text: TextEncoder, prefix: str, one: Input, max_length: int | None, overlap: int
) -> list[Window]:
    if isinstance(one, str):
        tokenizer, room = text.tokenizer, _room(text, max_length, 1)
        encoding = tokenizer.encode(prefix + one, add_special_tokens=False)
        encoding.truncate(room, stride=min(overlap, room // 2))
        made = tokenizer.post_process(encoding)
        return [_window(part, 0, len(prefix)) for part in (made, *made.overflowing)]
    tokenizer, room = text.tokenizer, _room(text, max_length, 2)
    first = tokenizer.encode(prefix + one[0], add_special_tokens=False)
    cut = max(len(first.ids) - room // 2, 0)
    first.truncate(room // 2)
    second = tokenizer.encode(one[1], add_special_tokens=False)
    room -= len(first.ids)
    second.truncate(room, stride=min(overlap, room // 2))
    parts = (second, *second.overflowing)
    found = [_window(tokenizer.post_process(first, part), 1, 0) for part in parts]
    return [replace(found[0], cut=cut), *found[1:]]


def _window(encoding: Any, sequence: int, shift: int) -> Window:
    """A window whose offsets are those of one of its texts, which begins at `shift`."""
    offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2) - shift
    inside = [found == sequence for found in encoding.sequence_ids]
    outside = ~np.array(inside, bool) | (offsets[:, 1] <= 0)
    words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int32)
    words[outside] = -1
    offsets = np.where(outside[:, None], -1, np.maximum(offsets, 0))
    return Window(list(encoding.ids), offsets, words)


def _two(text: TextEncoder, prefix: str, first: str, second: str, max_length: int | None) -> Window:
    """Cut as `tokenizers` does with "longest_first", the prefix never."""
    room = _room(text, max_length, 2)
    fixed = text.tokenizer.encode(prefix.rstrip(), add_special_tokens=False).ids
    parts = [
        text.tokenizer.encode(one, add_special_tokens=False) for one in (prefix + first, second)
    ]
    lengths = [len(part.ids) for part in parts]
    kept, cut = list(lengths), max(sum(lengths) - room, 0)
    if cut:
        room -= len(fixed)
        short, _ = sorted((lengths[0] - len(fixed), lengths[1]))
        half = room // 2
        ends = (short, room - short) if 2 * short <= room else (half, room - half)
        first_is_long = lengths[0] - len(fixed) > lengths[1]
        kept = [len(fixed) + ends[first_is_long], ends[not first_is_long]]
    for part, length in zip(parts, kept, strict=True):
        part.truncate(length)
    return Window(list(text.tokenizer.post_process(*parts).ids), cut=cut)


def _room(text: TextEncoder, max_length: int | None, texts: int) -> int:
    """How many tokens a window takes, beside the special ones."""
    limit = text.max_length if max_length is None else min(max_length, text.max_length)
    frame = text.tokenizer.encode("", "" if texts == 2 else None)
    room = limit - len(frame.ids)
    if room < LEAST * texts:
        raise OptionError(
            f"max_length={limit} leaves {max(room, 0)} tokens beside the special ones; at least "
            f"{LEAST * texts} are needed."
        )
    return room
