"""Two files aligned line by line -> pairs, as Tatoeba's translations are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from adaptx.data.records import Pair
from adaptx.data.tables import Line, read_lines
from adaptx.errors import DataError


def read_aligned(path: Path, other: Path) -> Iterator[Pair | DataError]:
    """Line i of one file with line i of the other; unequal counts are an error that names both."""
    counts = [0, 0]
    for left, right in zip_longest(read_lines(path), read_lines(other)):
        counts[0] += left is not None
        counts[1] += right is not None
        if left is None or right is None:
            continue
        try:
            yield Pair(_text(left), _text(right), None, left.path, left.line)
        except DataError as error:
            yield error
    if counts[0] != counts[1]:
        yield DataError(
            f"the file has {counts[0]} lines, and {other}, which is to be aligned with it, "
            f"{counts[1]}: line i of one must belong to line i of the other.",
            path,
        )


def _text(line: Line) -> str:
    text = line.text()
    if not text.strip():
        raise line.error("the line is empty, and a text is needed: the files must stay aligned.")
    return text
