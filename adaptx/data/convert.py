"""Any table -> JSONL, a row at a time: what makes a large compressed file fit for an index."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from adaptx.data.rows import strict
from adaptx.data.tables import read_rows
from adaptx.errors import DataError, OptionError, OutputExists


def convert(source: str | Path, target: str | Path, *, overwrite: bool = False) -> int:
    """Write the rows of a table, all its columns, as JSONL; how many there were.

    The file appears whole or not at all. Raises DataError for the first bad row, and for a value
    that JSON can't hold; OutputExists, before anything is read, for a target that is there.
    """
    check_target(target, overwrite=overwrite)
    return write_lines(target, _lines(source), source)


def check_target(target: str | Path, *, overwrite: bool) -> None:
    """Raise OptionError or OutputExists where no JSONL file can be made."""
    target = Path(target)
    if target.suffix != ".jsonl":
        raise OptionError(f"{target} must end in .jsonl: that is what is written.")
    if target.exists() and not overwrite:
        raise OutputExists(f"{target} exists already: choose another name, or pass --overwrite.")
    if not target.parent.is_dir():
        raise OutputExists(f"{target} can't be made: there is no folder {target.parent}.")


def write_lines(target: str | Path, lines: Iterable[str], source: str | Path) -> int:
    """Write lines that were made of `source`, whole or not at all; how many there were."""
    target = Path(target)
    made = target.with_name(f".{target.name}.new-{os.getpid()}")
    rows = 0
    try:
        with made.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(line + "\n")
                rows += 1
            file.flush()
            os.fsync(file.fileno())
        if not rows:
            raise DataError("the file has no rows.", source)
        made.replace(target)
    except OSError as error:
        raise OutputExists(f"{target} can't be written ({error.strerror or error}).") from error
    finally:
        made.unlink(missing_ok=True)
    return rows


def _lines(source: str | Path) -> Iterator[str]:
    for row in strict(read_rows(source)):
        try:
            line = json.dumps(dict(row.values), ensure_ascii=False, allow_nan=False)
            line.encode("utf-8")
        except (TypeError, ValueError) as error:
            raise row.error(f"JSON can't hold this row ({error}).") from None
        yield line
