"""Data files -> examples: JSONL, TSV and CSV, gzipped or not.

JSONL has one object a line. TSV and CSV have a header; a TSV is split at tabs with no quoting (as
SIB-200 and AfriSenti are), a CSV follows RFC 4180. Everything is UTF-8.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adaptx.errors import DataError, choices

TEXT_COLUMNS = ("text", "sentence", "tweet", "review", "content", "utterance")
LABEL_COLUMNS = ("label", "category", "topic", "class", "sentiment", "intent")
FORMATS = (".jsonl", ".ndjson", ".tsv", ".csv")
SPLITS = {"train": ("train",), "dev": ("dev", "validation", "valid"), "test": ("test",)}

Row = dict[str, object]


@dataclass(frozen=True)
class Example:
    """One text and, where the file has one, its label; `path` and `line` say where it stands."""

    text: str
    label: str | None = None
    path: str = ""
    line: int = 0

    def error(self, message: str) -> DataError:
        """A DataError that points at this example."""
        return DataError(message, self.path or None, self.line or None)


def read_examples(
    path: str | Path,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    labelled: bool = True,
) -> list[Example]:
    """The examples of a file, in its order.

    `text_column` and `label_column` name columns; without them the first known name that the file
    has is taken (TEXT_COLUMNS, LABEL_COLUMNS). With `labelled` off, labels may be absent.
    Raises DataError, with the line, for a file that is missing, not UTF-8, in no known format, or
    empty, for a missing column, and for an empty text or label.
    """
    path = Path(path)
    examples: list[Example] = []
    for line, row in _rows(path):
        text_name = _column(text_column, TEXT_COLUMNS, row, "text", path, line)
        label_name = (
            _column(label_column, LABEL_COLUMNS, row, "label", path, line)
            if labelled or label_column
            else next((name for name in LABEL_COLUMNS if name in row), None)
        )
        text, label = row[text_name], row[label_name] if label_name else None
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                f"the text (column {text_name!r}) is {repr(text) if text else 'empty'}: "
                f"give the row a text, or take it out.",
                path,
                line,
            )
        if isinstance(label, (int, float)) and not isinstance(label, bool):
            label = str(label)  # numbered classes are names like any other
        if labelled and (not isinstance(label, str) or not label.strip()):
            raise DataError(
                f"the label (column {label_name!r}) is {label!r}: give the row a label, or take "
                f"it out.",
                path,
                line,
            )
        _check_unicode(text, "text", path, line)
        name = label.strip() if isinstance(label, str) and label.strip() else None
        _check_unicode(name or "", "label", path, line)
        examples.append(Example(text, name, str(path), line))
    if not examples:
        raise DataError("the file has no rows.", path)
    return examples


def read_column(path: str | Path, column: str) -> list[str]:
    """One column of a file as text, in its order; absent values are empty."""
    path = Path(path)
    return [
        "" if (value := row[_column(column, (), row, "column", path, line)]) is None else str(value)
        for line, row in _rows(path)
    ]


def find_split(folder: str | Path, split: str) -> Path:
    """The file of `train`, `dev` or `test` in a folder, whatever its known format."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}.")
    for name in SPLITS[split]:
        for format_ in FORMATS:
            for suffix in (format_, format_ + ".gz"):
                if (found := folder / (name + suffix)).is_file():
                    return found
    there = sorted(path.name for path in folder.iterdir())
    raise DataError(
        f"{folder} has no {split} file ({' or '.join(SPLITS[split])}, with the ending "
        f"{', '.join(FORMATS)}, gzipped or not); it has: {choices(there) or 'nothing'}."
    )


def _column(
    asked: str | None, known: tuple[str, ...], row: Row, what: str, path: Path, line: int
) -> str:
    if asked is not None:
        if asked in row:
            return asked
        raise DataError(
            f"there is no column {asked!r} for the {what}; there is: {choices(row)}.", path, line
        )
    for name in known:
        if name in row:
            return name
    raise DataError(
        f"no column looks like the {what} (known names: {choices(known)}); there is: "
        f"{choices(row)}. Name it with --{what}-column ({what}_column=…).",
        path,
        line,
    )


def _check_unicode(text: str, what: str, path: Path, line: int) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair
        raise DataError(f"the {what} holds a lone surrogate ({error}).", path, line) from None


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number, row) of each row."""
    names = path.suffixes[:-1] if path.suffix == ".gz" else path.suffixes
    format_ = names[-1].lower() if names else ""
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".tsv": _tsv, ".csv": _csv}
    if format_ not in readers:
        raise DataError(
            f"the ending {format_ or path.name!r} is no known format: {choices(FORMATS)}, "
            f"gzipped or not.",
            path,
        )
    yield from readers[format_](path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a UTF-8 text file, read as it is needed, gzipped or not."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"this isn't UTF-8 (byte {error.object[error.start]:#04x} at column "
                        f"{error.start + 1}): save the file as UTF-8, for example with "
                        f"iconv -t utf-8.",
                        path,
                        number,
                    ) from None
    except FileNotFoundError:
        raise DataError("there is no such file.", path) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"the gzip stream is damaged or truncated ({error}).", path) from error
    except OSError as error:
        raise DataError(f"the file can't be read ({error.strerror or error}).", path) from error


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"this isn't JSON: {error}.", path, number) from None
        if not isinstance(row, dict):
            raise DataError(
                f"this is a JSON {type(row).__name__}; an object such as "
                '{"text": "…", "label": "…"} is needed.',
                path,
                number,
            )
        yield number, row


def _tsv(path: Path) -> Iterator[tuple[int, Row]]:
    header: list[str] = []
    for number, line in _lines(path):
        fields = line.rstrip("\r\n").split("\t")
        if not header:
            header = _header(fields, path, number)
        elif line.strip("\r\n"):
            yield number, _row(header, fields, path, number)


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] = []
    start = 1
    try:
        for fields in reader:
            if not header:
                header = _header(fields, path, start)
            elif fields:
                yield start, _row(header, fields, path, start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"this isn't CSV: {error}.", path, start) from None


def _header(fields: list[str], path: Path, number: int) -> list[str]:
    header = [field.strip() for field in fields]
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"the header has {choices(twice)!r} twice.", path, number)
    return header


def _row(header: list[str], fields: list[str], path: Path, number: int) -> Row:
    if len(fields) != len(header):
        raise DataError(
            f"{len(fields)} fields, and the header has {len(header)} ({choices(header)}).",
            path,
            number,
        )
    return dict(zip(header, fields, strict=True))
