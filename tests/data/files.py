"""Small data files for the tests: written as users write them."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from adaptx.errors import DataError

ROWS = [("Habari ya asubuhi", "politics"), ("Adé lọ sí Ìbàdàn", "travel"), ("ሰላም 👑", "sports")]
FORMATS = [".jsonl", ".ndjson", ".tsv", ".csv"]
seeded = settings(derandomize=True, deadline=None, max_examples=60)
printable = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
no_nul = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
tabless = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n"), min_size=1)


def write(path, content):
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def as_format(ending, rows, header=("text", "label")):
    if ending in (".jsonl", ".ndjson"):
        objects = [dict(zip(header, row, strict=True)) for row in rows]
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in objects)
    separator = "\t" if ending == ".tsv" else ","
    return "".join(separator.join(row) + "\n" for row in [header, *rows])


def pairs(examples):
    return [(example.text, example.label) for example in examples]


def refusal(read, path, line, **options):
    with pytest.raises(DataError) as caught:
        read(path, **options)
    error = caught.value
    assert (Path(error.path), error.line) == (path, line)
    assert str(error).startswith(f"{path}: " if line is None else f"{path}, line {line}: ")
    return str(error)
