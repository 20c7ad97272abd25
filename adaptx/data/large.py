"""Files larger than memory: the places of lines are kept, and rows are read when asked for.

JSONL, TSV and plain text that aren't compressed can be opened so, for 8 bytes of memory a line. In
any other format a row can't be found without reading all that stands before it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from adaptx.data.records import Example
from adaptx.data.rows import strict
from adaptx.data.streams import CLASSIFICATION, ENDINGS, PLAIN, RECORDS, STREAMS, Columns
from adaptx.data.tables import (
    TABLES,
    Line,
    ending,
    json_row,
    opened,
    table_header,
    text_row,
    tsv_row,
)
from adaptx.errors import DataError, choices

LARGE = 256 << 20  # bytes: a file above this is indexed instead of read
_BLOCK = 4 << 20
_SAMPLE, _SAMPLES = 64 << 10, 64  # a digest's blocks: their bytes, and how many
# By format: the bytes that a blank line may begin with. Only such lines are looked at closely.
_MAYBE_BLANK = {
    ".jsonl": (*range(33), *range(128, 256)),
    ".ndjson": (*range(33), *range(128, 256)),
    ".tsv": (10, 13),
    ".txt": (*range(33), *range(128, 256)),
}


def open_records(source: str | Path, task: str, columns: Columns | None = None) -> Sequence[Any]:
    """The records of a source as a task reads them (streams.STREAMS): a list or, of a large file
    and a task of streams.RECORDS, IndexedExamples.

    A bad row of a large file raises its DataError when it is met; any other at once.
    """
    columns, path = columns or Columns(), Path(source)
    columns.check(task)
    large = _can_be_indexed(path, task) and path.is_file() and path.stat().st_size > LARGE
    if large:
        return IndexedExamples(path, columns, task)
    found = list(strict(STREAMS[task](source, columns)))
    if not found:
        raise DataError("the file has no rows.", source)
    return found


def open_examples(
    source: str | Path,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    labelled: bool = True,
) -> Sequence[Example]:
    """The examples of a source: `open_records` of texts with labels."""
    columns = Columns(text_column, label_column, labelled=labelled)
    return open_records(source, CLASSIFICATION, columns)


class IndexedExamples(Sequence[Example]):
    """The examples of an uncompressed file, parsed and checked when asked for; of plain text for
    masked language modelling alone.

    It equals the list that `open_records` gives of a small file. It holds no open file, so threads
    may share it and it can be pickled. Raises DataError for a bad row when that row is met, and for
    a file that has changed since it was opened.
    """

    def __init__(
        self, path: str | Path, columns: Columns | None = None, task: str = CLASSIFICATION
    ):
        self.path, self.columns, self.task = Path(path), columns or Columns(), task
        if not _can_be_indexed(self.path, task):
            raise DataError(
                f"only an uncompressed {choices(_formats(task))} file can be indexed: write it as "
                f"one with adaptx data convert.",
                path,
            )
        self._header: list[str] = []
        with opened(self.path) as file:
            self._stamp = _stamp(file)
            self._starts, skipped = _index(file, ending(path))
            if ending(path) == ".tsv" and len(skipped) < len(self._starts):
                first = next(i for i in itertools.count() if i not in skipped[i : i + 1])
                line = self._line(file, first)
                self._header = table_header(line.text().split("\t"), line)
                skipped = np.insert(skipped, first, first)
        # How many rows stand before each skipped line: row i is line i + (how many of these <= i).
        self._rows_before = skipped - np.arange(len(skipped))
        if not len(self):
            raise DataError("the file has no rows.", path)

    def __len__(self) -> int:
        return len(self._starts) - len(self._rows_before)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        places = range(len(self))[index]
        return self.take(places) if isinstance(places, range) else self.take([places])[0]

    def __iter__(self) -> Iterator[Example]:
        """All rows in order, in one pass over the file."""
        with opened(self.path) as file:
            self._check_unchanged(file)
        return strict(STREAMS[self.task](self.path, self.columns))

    def take(self, indices: Sequence[int] | np.ndarray) -> list[Example]:
        """The examples at `indices`, counted from 0, in the order given."""
        rows = np.asarray(indices, dtype=np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"{self.path} has the rows 0 to {len(self) - 1}.")
        numbers = rows + np.searchsorted(self._rows_before, rows, side="right")
        plain = text_row if ending(self.path) in PLAIN else json_row
        parse = partial(tsv_row, self._header) if self._header else plain
        make = partial(RECORDS[self.task], self.columns)
        with opened(self.path) as file:
            self._check_unchanged(file)
            found = [parse(self._line(file, int(number))) for number in numbers]
        return [make(row) for row in found if row is not None]

    def digest(self, also: str = "") -> str:
        """The sha256 of the columns, of `also`, and of the file's size and blocks from end to end:
        all of a small file.
        """
        found = hashlib.sha256(repr((self.columns, also, self._stamp[0])).encode())
        with opened(self.path) as file:
            self._check_unchanged(file)
            last = max(0, self._stamp[0] - _SAMPLE)
            for start in np.unique(np.linspace(0, last, _SAMPLES, dtype=np.int64)):
                file.seek(int(start))
                found.update(file.read(_SAMPLE))
        return found.hexdigest()

    def _check_unchanged(self, file: BinaryIO) -> None:
        if _stamp(file) != self._stamp:
            raise DataError("the file has changed since it was opened.", self.path)

    def _line(self, file: BinaryIO, number: int) -> Line:
        start, last = int(self._starts[number]), number + 1 == len(self._starts)
        end = self._stamp[0] if last else int(self._starts[number + 1])
        file.seek(start)
        return Line(file.read(end - start), str(self.path), number + 1)


def _formats(task: str) -> list[str]:
    return [format_ for format_ in _MAYBE_BLANK if format_ in ENDINGS.get(task, TABLES)]


def _can_be_indexed(path: Path, task: str) -> bool:
    return task in RECORDS and path.suffix in _formats(task)


def _stamp(file: BinaryIO) -> tuple[int, int]:
    stat = os.fstat(file.fileno())
    return stat.st_size, stat.st_mtime_ns


def _index(file: BinaryIO, format_: str) -> tuple[np.ndarray, np.ndarray]:
    """int64: where each line starts, in bytes; and which lines, from 0, are blank."""
    maybe_blank = np.isin(np.arange(256), _MAYBE_BLANK[format_])
    starts, suspects, blank = array("q"), array("q"), array("q")
    buffer, base, at_start = bytearray(_BLOCK), 0, True
    while size := file.readinto(buffer):  # type: ignore[attr-defined]
        block = np.frombuffer(buffer, np.uint8, size)
        found = np.flatnonzero(block == ord("\n")) + 1
        if at_start:
            found = np.insert(found, 0, 0)
        if at_start := block[-1] == ord("\n"):  # the next line is the next block's, if there is one
            found = found[:-1]
        suspects.frombytes((np.flatnonzero(maybe_blank[block[found]]) + len(starts)).tobytes())
        starts.frombytes((found + base).tobytes())
        base += size
    for number in itertools.chain([0] if starts else [], (n for n in suspects if n)):
        file.seek(starts[number])
        text = file.readline().decode("utf-8-sig" if number == 0 else "utf-8", "replace")
        if not (text.strip("\r\n") if format_ == ".tsv" else text.strip()):
            blank.append(number)
    return np.frombuffer(starts, np.int64), np.frombuffer(blank, np.int64)
