"""Parquet files and `hf:` datasets -> rows, a batch at a time; both are Arrow tables.

An integer column that Hugging Face's metadata calls a ClassLabel becomes its names (-1, its
"no label", becomes None). `hf:` goes through `datasets`, which keeps what it opened as
memory-mapped Arrow files in its cache.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adaptx.data.rows import Row
from adaptx.errors import DataError, choices

_BATCH = 1024  # rows
# The builders of `datasets` that hold tables; another could open a pickle ("pandas").
_BUILDERS = ("arrow", "cache", "csv", "json", "parquet", "text")
_SYNTAX = (
    "hf:USER/NAME:SPLIT, hf:USER/NAME/CONFIG:SPLIT, or with a local folder hf:./FOLDER:SPLIT, "
    "hf:./FOLDER/CONFIG:SPLIT"
)


def parquet_rows(path: Path) -> Iterator[Row | DataError]:
    """The rows of a Parquet file; its batches are read as they are needed."""
    import pyarrow
    from pyarrow import parquet

    if path.suffix == ".gz":
        raise DataError("Parquet is compressed inside, not around: gunzip the file.", path)
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield from _rows(file.iter_batches(_BATCH), file.schema_arrow, str(path))
    except FileNotFoundError:
        raise DataError("there is no such file.", path) from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"this can't be read as Parquet ({error}).", path) from error


def hub_rows(source: str) -> Iterator[Row | DataError]:
    """The rows of `hf:<dataset>[/<config>]:<split>`; the dataset is on the Hub or a local folder.

    No script of a dataset is run, and no pickle is opened. Raises DataError for a dataset, config
    or split that doesn't exist (with those that do), and without a network.
    """
    path, config, split = _parse(source)

    import datasets

    try:
        with _quietly():
            builder = datasets.load_dataset_builder(path, config)
            made_by = type(builder).__module__.rpartition(".")[2]
            local = Path(path).is_dir()
            if made_by not in _BUILDERS or (builder.repo_id is None and not local):
                raise DataError(
                    f"this is no dataset of tables ({made_by}): adaptx opens those of "
                    f"{choices(_BUILDERS)} files.",
                    source,
                )
            builder.download_and_prepare()
            table = builder.as_dataset(split).with_format("arrow")
    except DataError:
        raise
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise _refused(source, error) from error
    yield from _rows(
        (batch for part in table.iter(_BATCH) for batch in part.to_batches()),
        table.features.arrow_schema,
        source,
    )


def _parse(source: str) -> tuple[str, str | None, str]:
    """(name or folder, config, split)."""
    name, _, split = source.removeprefix("hf:").partition(":")
    if not name or not split:
        raise DataError(f"the source isn't written as {_SYNTAX}.", source)
    if name.startswith((".", "/", "~")):
        folder = Path(name).expanduser().resolve()
        if folder.is_dir():
            return str(folder), None, split
        card = folder.parent / "README.md"  # configs are declared in its front matter
        if card.is_file() and card.read_bytes().startswith(b"---"):
            return str(folder.parent), folder.name, split
        raise DataError(f"there is no folder {folder}.", source)
    parts = name.split("/")
    if len(parts) > 3 or not all(parts):
        raise DataError(f"the source isn't written as {_SYNTAX}.", source)
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split


def _refused(source: str, error: Exception) -> DataError:
    cause = error.__cause__ if str(error).startswith("An error occurred") else None
    said = " ".join(str(cause or error).split("Example of usage")[0].split()).rstrip(".")
    if not isinstance(error, ConnectionError):
        return DataError(f"the dataset can't be opened: {said}.", source)
    mode = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return DataError(
        f"the Hub can't be reached{mode}: {said}. Without a network, give a local folder "
        f"(hf:./FOLDER:SPLIT) or a file.",
        source,
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the progress bars and log lines of `datasets`."""
    from datasets.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    before, off = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if not off:
            enable_progress_bars()


def _rows(batches: Iterable[Any], schema: Any, path: str) -> Iterator[Row | DataError]:
    """The rows of record batches, classes by name, numbered from 1."""
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise DataError(f"the column {choices(twice)!r} stands twice.", path)
    classes = _class_names(schema.metadata)
    types = {column.name: str(column.type) for column in schema if column.name not in classes}
    number = 0
    for batch in batches:
        for values in _values(batch):
            number += 1
            row = Row(values or {}, path, number, types)
            if values is None:
                yield row.error("a text isn't UTF-8: write the file again from its source.")
                continue
            try:
                for column in classes.keys() & values.keys():
                    values[column] = _named(values[column], classes[column], row, column)
            except DataError as error:
                yield error
            else:
                yield row


def _values(batch: Any) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch as dicts; None for one that holds a text that isn't UTF-8."""
    try:
        yield from _dicts(batch)
    except UnicodeDecodeError:
        for place in range(len(batch)):
            try:
                yield _dicts(batch.slice(place, 1))[0]
            except UnicodeDecodeError:
                yield None


def _dicts(batch: Any) -> list[dict[str, Any]]:
    """Rows; dates and times that Python can't hold stay Arrow's own values."""
    import pyarrow as pa

    try:
        found: list[dict[str, Any]] = batch.to_pylist()
        return found
    except UnicodeDecodeError:
        raise
    except (OverflowError, ValueError, LookupError):  # beyond the year 9999, an unknown time zone
        columns = [
            list(column) if pa.types.is_temporal(column.type) else column.to_pylist()
            for column in batch.columns
        ]
        names = batch.schema.names
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """The class names by column, of a ClassLabel and of a list of them."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        columns = dict(features)
    except (KeyError, TypeError, ValueError):
        return {}  # another program's metadata
    found = {}
    for column, feature in columns.items():
        inner = feature[0] if isinstance(feature, list) and feature else feature
        inner = inner.get("feature", inner) if isinstance(inner, dict) else {}
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and inner.get("names"):
            found[column] = [str(name) for name in inner["names"]]
    return found


def _named(value: Any, names: list[str], row: Row, column: str) -> Any:
    if isinstance(value, list):
        return [_named(item, names, row, column) for item in value]
    if not isinstance(value, int) or value == -1:
        return None if value == -1 else value
    if not 0 <= value < len(names):
        raise row.error(
            f"column {column!r} is {value}, and its classes are 0 to {len(names) - 1} "
            f"({choices(names)})."
        )
    return names[value]
