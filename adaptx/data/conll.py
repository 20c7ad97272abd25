"""CoNLL files -> tagged sentences: `token … TAG` on a line, a blank line between sentences.

Fields are separated by tabs, or by any number of spaces where a line has no tab; the first is the
token and the last its tag. In a file of two columns a token may hold spaces, as UNER's `600 000 O`
does. `-DOCSTART-` lines and `# ` comments before a sentence are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from adaptx.data.records import Tagged
from adaptx.data.tables import read_lines
from adaptx.errors import DataError

_TAG = re.compile(r"O|[A-Z]-\S+")


def read_conll(path: Path) -> Iterator[Tagged | DataError]:
    """The sentences of a CoNLL file; one with a bad line is left out, and its errors are given."""
    columns = 0  # of the first line with a token; every other has as many
    words: list[tuple[str, str]] = []
    start, bad = 0, False

    def sentence() -> Iterator[Tagged]:
        if words and not bad:
            tokens, tags = zip(*words, strict=True)
            yield Tagged(tokens, tags, str(path), start, apart=True)

    for line in read_lines(path):
        try:
            fields = _fields(line.text())
            if not fields or fields[0] == "-DOCSTART-":
                yield from sentence()
                words, bad = [], False
                continue
            if not (words or bad) and _is_comment(fields, columns or 2):
                continue
            if len(fields) < 2:
                raise line.error(
                    f"one field, {fields[0]!r}: a token and its tag are needed, separated by a "
                    f"space or a tab, and a blank line between sentences."
                )
            if columns == 2 and len(fields) > 2:
                fields = [" ".join(fields[:-1]), fields[-1]]
            if columns and len(fields) != columns:
                raise line.error(
                    f"{len(fields)} fields, and the lines before have {columns}: each line needs "
                    f"as many, separated by a space or a tab."
                )
            if not fields[0].strip() or not fields[-1].strip():
                raise line.error("the token or its tag is empty.")
        except DataError as error:
            yield error
            bad = True
            continue
        columns = columns or len(fields)
        start = start if words else line.line
        words.append((fields[0], fields[-1].strip()))
    yield from sentence()


def _fields(line: str) -> list[str]:
    if not line.strip(" \t"):
        return []
    return line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))


def _is_comment(fields: list[str], columns: int) -> bool:
    """`# text = …`, but not the token `#` with its tag."""
    return fields[0] == "#" and not (len(fields) == columns and _TAG.fullmatch(fields[-1]))
