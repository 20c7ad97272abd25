"""Data files and datasets -> records: the strict readers, which raise the first error.

A source is a file whose ending says its format, or `hf:<dataset>[/<config>]:<split>`; see
docs/data.md. `adaptx.data.large.open_examples` opens files that are larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from adaptx.data import streams
from adaptx.data.aligned import read_aligned
from adaptx.data.records import Example, Pair, Passage, Tagged
from adaptx.data.rows import strict
from adaptx.data.streams import Columns
from adaptx.data.tables import TABLES, read_rows
from adaptx.errors import DataError, choices

__all__ = [
    *("FORMATS", "Example", "Pair", "Passage", "Tagged"),
    *("find_split", "read_column", "read_examples", "read_pairs", "read_passages", "read_tagged"),
    "read_texts",
]
FORMATS = tuple(TABLES)
SPLITS = {"train": ("train",), "dev": ("dev", "validation", "valid"), "test": ("test",)}
R = TypeVar("R")


def read_examples(
    source: str | Path,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    labelled: bool = True,
) -> list[Example]:
    """The examples of a table, in its order.

    `text_column` and `label_column` name columns; without them the first known name that the file
    has is taken (streams.TEXT_COLUMNS, LABEL_COLUMNS). With `labelled` off, labels may be absent.
    Raises DataError, with the line, for a file that is missing, not UTF-8, in no known format, or
    empty, for a missing column, and for an empty text or label.
    """
    columns = Columns(text_column, label_column, labelled=labelled)
    return _all(streams.examples(source, columns), source)


def read_texts(source: str | Path, *, text_column: str | None = None) -> list[Example]:
    """The texts of a text file, one a line, or of a table; DataError as `read_examples`."""
    return _all(streams.texts(source, Columns(text_column)), source)


def read_tagged(
    source: str | Path, *, text_column: str | None = None, label_column: str | None = None
) -> list[Tagged]:
    """The tagged sentences of a CoNLL file, or of a table with a list of tokens and one of tags.

    `text_column` names the tokens' column of a table, `label_column` the tags'. Raises DataError,
    with the line, as `read_examples` does, and for a token without a tag.
    """
    return _all(streams.tagged(source, Columns(text_column, label_column)), source)


def read_passages(source: str | Path) -> list[Passage]:
    """The questions of a SQuAD file, or of a table laid out like `datasets`' SQuAD.

    Raises DataError as `read_examples` does, with the question's id, and for an answer that isn't
    at its answer_start in its passage.
    """
    return _all(streams.passages(source, Columns()), source)


def read_pairs(
    source: str | Path,
    other: str | Path | None = None,
    *,
    text_column: str | None = None,
    other_column: str | None = None,
    label_column: str | None = None,
    labelled: bool = False,
) -> list[Pair]:
    """The pairs of a table with two columns of texts, or of two files aligned line by line.

    Two files are given as `source` and `other`, or as "FILE1,FILE2". Raises DataError as
    `read_examples` does, and with both counts for files of unequal length.
    """
    if other is not None:
        return _all(read_aligned(Path(source), Path(other)), source)
    columns = Columns(text_column, label_column, other_column, labelled)
    return _all(streams.pairs(source, columns), source)


def read_column(source: str | Path, column: str, what: str = "column") -> list[str]:
    """One column of a table as text, in its order; absent values are empty.

    `what` says in an error what it is for.
    """
    values = (row.values[row.column(column, (), what)] for row in strict(read_rows(source)))
    return ["" if value is None else str(value) for value in values]


def find_split(folder: str | Path, split: str, formats: Sequence[str] = FORMATS) -> Path:
    """The file of `train`, `dev` or `test` in a folder, whatever its known format."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}.")
    for name in SPLITS[split]:
        for format_ in formats:
            for suffix in (format_, format_ + ".gz"):
                if (found := folder / (name + suffix)).is_file():
                    return found
    there = sorted(path.name for path in folder.iterdir())
    raise DataError(
        f"{folder} has no {split} file ({' or '.join(SPLITS[split])}, with the ending "
        f"{', '.join(formats)}, gzipped or not); it has: {choices(there) or 'nothing'}."
    )


def _all(found: Iterator[R | DataError], source: str | Path) -> list[R]:
    records = list(strict(found))
    if not records:
        raise DataError("the file has no rows.", source)
    return records
