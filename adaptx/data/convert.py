"""Any table -> JSONL, a row at a time: what makes a large compressed file fit for an index."""

from __future__ import annotations

import json
import os
from pathlib import Path

from adaptx.data.rows import strict
from adaptx.data.tables import read_rows
from adaptx.errors import DataError, OptionError, OutputExists


def convert(source: str | Path, target: str | Path, *, overwrite: bool = False) -> int:
    """Write the rows of a table, all its columns, as JSONL; how many there were.

    The file appears whole or not at all. Raises DataError for the first bad row, and for a value
    that JSON can't hold; OutputExists, before anything is read, for a target that is there.
    """
    target = Path(target)
    if target.suffix != ".jsonl":
        raise OptionError(f"{target} must end in .jsonl: that is what convert writes.")
    if target.exists() and not overwrite:
        raise OutputExists(f"{target} exists already: choose another name, or pass --overwrite.")
    if not target.parent.is_dir():
        raise OutputExists(f"{target} can't be made: there is no folder {target.parent}.")
    made = target.with_name(f".{target.name}.new-{os.getpid()}")
    rows = 0
    try:
        with made.open("w", encoding="utf-8") as file:
            for row in strict(read_rows(source)):
                try:
                    line = json.dumps(dict(row.values), ensure_ascii=False, allow_nan=False)
                    file.write(line + "\n")
                except (TypeError, ValueError) as error:
                    raise row.error(f"JSON can't hold this row ({error}).") from None
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
