"""Rows of a table, and how a record takes its values from them.

A reader yields what it made of each row, and a DataError in the place of a row that is bad: the
strict readers raise the first (`strict`), `adaptx data check` collects them. What makes reading on
impossible (no such file, a damaged gzip stream) is raised at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from adaptx.data.records import Placed
from adaptx.errors import DataError, choices

A = TypeVar("A")
B = TypeVar("B")


@dataclass(slots=True)
class Row(Placed):
    """The values of one row by column. `types` names the columns' types where a file has them."""

    values: Mapping[str, Any]
    path: str
    line: int
    types: Mapping[str, str] = field(default_factory=dict)

    def column(self, asked: str | None, known: tuple[str, ...], what: str) -> str:
        """The column for `what`: the one asked for, else the first known name that is there."""
        if asked is not None:
            if asked in self.values:
                return asked
            raise self.error(
                f"there is no column {asked!r} for the {what}; there is: {choices(self.values)}."
            )
        if found := next((name for name in known if name in self.values), None):
            return found
        raise self.error(
            f"no column looks like the {what} (known names: {choices(known)}); there is: "
            f"{choices(self.values)}. Name it with --{what}-column ({what}_column=…)."
        )

    def text(self, column: str, what: str) -> str:
        """A text that isn't empty."""
        value = self.values[column]
        if not isinstance(value, str) or not value.strip():
            if value is not None and not isinstance(value, str):
                self._check_type(column, what, "string")
            raise self.error(
                f"the {what} (column {column!r}) is {repr(value) if value else 'empty'}: "
                f"give the row a text, or take it out."
            )
        return self.unicode(value, what)

    def label(self, column: str | None, *, needed: bool) -> str | None:
        """A label's name; numbered classes are names like any other."""
        value = self.values[column] if column else None
        if isinstance(value, float):  # 1.0 is what a table makes of 1 in a column with gaps, of NaN
            value = (int(value) if value.is_integer() else value) if math.isfinite(value) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            if needed and value is not None and column and not isinstance(value, str):
                self._check_type(column, "label", "string or integer")
            if needed:
                raise self.error(
                    f"the label (column {column!r}) is {value!r}: give the row a label, or take "
                    f"it out."
                )
            return None
        return self.unicode(value.strip(), "label")

    def names(self, column: str, what: str) -> tuple[str, ...]:
        """A list of words or of tags, none of them empty."""
        value = self.values[column]
        if not isinstance(value, list):
            self._check_type(column, what, "list of strings")
            raise self.error(f"the {what} (column {column!r}) is {value!r}: a list is needed.")
        listed = [str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value]
        for place, name in enumerate(listed, 1):
            if not isinstance(name, str) or not name.strip():
                raise self.error(f"number {place} of the {what} (column {column!r}) is {name!r}.")
            self.unicode(name, what)
        return tuple(listed)

    def texts(self, column: str, what: str) -> tuple[str, ...]:
        """A list of texts, none of them empty; () where there is none, or no such column."""
        value = self.values.get(column)
        if value is None:
            return ()
        if not isinstance(value, list):
            self._check_type(column, what, "list of strings")
            raise self.error(
                f"the {what} (column {column!r}) are {value!r}: a list of texts is needed, which "
                f"JSONL, Parquet and hf: sources can hold."
            )
        for place, text in enumerate(value, 1):
            if not isinstance(text, str) or not text.strip():
                raise self.error(
                    f"number {place} of the {what} (column {column!r}) is {text!r}: a text is "
                    f"needed, or take it out."
                )
            self.unicode(text, what)
        return tuple(value)

    def marks(self, column: str, sentences: int) -> tuple[bool, ...]:
        """A list with 0 or 1 for each of so many sentences."""
        value = self.values[column]
        if not isinstance(value, list):
            self._check_type(column, "labels", "list of integers")
            raise self.error(
                f"the labels (column {column!r}) are {value!r}: a list with 0 or 1 for each "
                f"sentence is needed, which JSONL, Parquet and hf: sources can hold."
            )
        if wrong := [mark for mark in value if mark not in (0, 1) or isinstance(mark, float)]:
            raise self.error(
                f"the labels (column {column!r}) have {wrong[0]!r}: each is 1, for a sentence of "
                f"the summary, or 0."
            )
        if len(value) != sentences:
            raise self.error(
                f"{len(value)} labels (column {column!r}), and {sentences} sentences: each needs "
                f"one. Give the document as a list of its sentences."
            )
        return tuple(map(bool, value))

    def unicode(self, text: str, what: str) -> str:
        """The text, if it can be written as UTF-8."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair
            raise self.error(f"the {what} holds a lone surrogate ({error}).") from None
        return text

    def _check_type(self, column: str, what: str, needed: str) -> None:
        if column in self.types:
            raise self.error(
                f"the column {column!r} has the type {self.types[column]}, and the {what} needs "
                f"{needed}: convert the column, or name another."
            )


def each(items: Iterable[A | DataError], make: Callable[[A], B | None]) -> Iterator[B | DataError]:
    """What `make` makes of each item, less the Nones; a DataError it raises takes its place."""
    for item in items:
        if isinstance(item, DataError):
            yield item
            continue
        try:
            made = make(item)
        except DataError as error:
            yield error
        else:
            if made is not None:
                yield made


def strict(items: Iterable[A | DataError]) -> Iterator[A]:
    """The items; the first that is bad is raised."""
    for item in items:
        if isinstance(item, DataError):
            raise item
        yield item
