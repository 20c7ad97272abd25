"""Tables -> rows: JSONL, TSV and CSV, gzipped or not, Parquet, and `hf:` datasets.

JSONL has one object a line. TSV and CSV have a header; a TSV is split at tabs with no quoting (as
SIB-200 and AfriSenti are), a CSV follows RFC 4180. Everything is UTF-8.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from adaptx.data import arrow
from adaptx.data.records import Placed
from adaptx.data.rows import Row, each
from adaptx.errors import DataError, choices

HUB = "hf:"


@dataclass(slots=True)
class Line(Placed):
    """A line of a text file, as it stands there."""

    raw: bytes
    path: str
    line: int

    def text(self) -> str:
        """The line decoded, without its end; DataError where it isn't UTF-8."""
        return self.decoded().rstrip("\r\n")

    def decoded(self) -> str:
        """The line decoded, with its end."""
        try:
            return self.raw.decode("utf-8-sig" if self.line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(
                f"this isn't UTF-8 (byte {error.object[error.start]:#04x} at column "
                f"{error.start + 1}): save the file as UTF-8, for example with iconv -t utf-8."
            ) from None


def read_rows(source: str | Path) -> Iterator[Row | DataError]:
    """The rows of a file or an `hf:` dataset, read as they are needed."""
    if str(source).startswith(HUB):
        return arrow.hub_rows(str(source))
    reader = TABLES.get(ending(source))
    if reader is None:
        raise unknown_ending(source, TABLES)
    return reader(Path(source))


def ending(source: str | Path) -> str:
    """The ending that tells a file's format, such as `.tsv` of `train.tsv.gz`."""
    path = Path(source)
    names = path.suffixes[:-1] if path.suffix == ".gz" else path.suffixes
    return names[-1].lower() if names else ""


def unknown_ending(source: str | Path, known: Iterable[str]) -> DataError:
    """The error for a file of none of the known formats."""
    return DataError(
        f"the ending {ending(source) or Path(source).name!r} is no known format: "
        f"{choices(known)} (a text file may be gzipped: .gz behind it).",
        source,
    )


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file to read bytes from, gzipped or not; what goes wrong with it is a DataError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except FileNotFoundError:
        raise DataError("there is no such file.", path) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"the gzip stream is damaged or truncated ({error}).", path) from error
    except OSError as error:
        raise DataError(f"the file can't be read ({error.strerror or error}).", path) from error


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a text file, gzipped or not; only a line feed ends a line."""
    name = str(path)
    with opened(path) as file:
        for number, raw in enumerate(file, 1):
            yield Line(raw, name, number)


def json_row(line: Line) -> Row | None:
    """The row of a JSONL line, None for a blank one."""
    text = line.text()
    if not text.strip():
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise line.error(f"this isn't JSON: {error}.") from None
    if not isinstance(values, dict):
        raise line.error(
            f"this is a JSON {type(values).__name__}; an object such as "
            '{"text": "…", "label": "…"} is needed.'
        )
    return Row(values, line.path, line.line)


def text_row(line: Line) -> Row | None:
    """The row of a line of plain text, its one column `text`; None for a blank one."""
    text = line.text()
    return Row({"text": text}, line.path, line.line) if text.strip() else None


def tsv_row(header: list[str], line: Line) -> Row | None:
    """The row of a TSV line, None for a blank one."""
    text = line.text()
    return _row(header, line, text.split("\t")) if text else None


def table_header(fields: list[str], place: Placed) -> list[str]:
    """The names of the columns; DataError where one stands twice."""
    header = [field.strip() for field in fields]
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise place.error(f"the header has {choices(twice)!r} twice.")
    return header


def _row(header: list[str], place: Placed, fields: list[str]) -> Row:
    if len(fields) != len(header):
        raise place.error(
            f"{len(fields)} fields, and the header has {len(header)} ({choices(header)})."
        )
    return Row(dict(zip(header, fields, strict=True)), place.path, place.line)


def _jsonl(path: Path) -> Iterator[Row | DataError]:
    return each(read_lines(path), json_row)


def _tsv(path: Path) -> Iterator[Row | DataError]:
    lines = read_lines(path)
    first = next((line for line in lines if line.text()), None)
    if first is not None:
        yield from each(lines, partial(tsv_row, table_header(first.text().split("\t"), first)))


def _csv(path: Path) -> Iterator[Row | DataError]:
    csv.field_size_limit(1 << 30)
    bad: list[DataError] = []  # lines that aren't UTF-8, of the row being read

    def decoded() -> Iterator[str]:
        for line in read_lines(path):
            try:
                yield line.decoded()
            except DataError as error:
                bad.append(error)
                yield line.raw.decode("utf-8", "replace")

    reader = csv.reader(decoded(), strict=True)
    header: list[str] = []
    place = Line(b"", str(path), 1)
    try:
        for fields in reader:
            if bad:
                yield from bad
                if not header:
                    return
                bad.clear()
            elif not header:
                header = table_header(fields, place)
            elif fields:
                yield from each([fields], partial(_row, header, place))
            place.line = reader.line_num + 1
    except csv.Error as error:
        yield from bad
        yield place.error(f"this isn't CSV: {error}. The rest of the file wasn't read.")


# What opens a file by its ending: a line here, and a function that yields rows.
TABLES: dict[str, Callable[[Path], Iterator[Row | DataError]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".tsv": _tsv,
    ".csv": _csv,
    ".parquet": arrow.parquet_rows,
}
