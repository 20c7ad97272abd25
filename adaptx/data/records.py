"""What a row of data is, for each task. Every record knows the file and line it came from.

A line counts from 1; in Parquet and `hf:` sources it is the row's number, and 0 where there is no
such thing (SQuAD's JSON: its records say their question's id instead).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adaptx.errors import DataError


class Placed:
    """Something that stands in a file, and can point an error there."""

    __slots__ = ()
    path: str
    line: int

    def error(self, message: str) -> DataError:
        """A DataError that points at this place."""
        return DataError(message, self.path or None, self.line or None)


@dataclass(frozen=True, slots=True)
class Example(Placed):
    """One text and, where the file has one, its label."""

    text: str
    label: str | None = None
    path: str = ""
    line: int = 0

    @property
    def texts(self) -> dict[str, str]:
        """What an encoder reads, by name."""
        return {"text": self.text}

    @property
    def labels(self) -> tuple[str, ...]:
        """What there is to learn, as names that can be counted."""
        return () if self.label is None else (self.label,)

    @property
    def row(self) -> dict[str, Any]:
        """A table's row that is read as this record."""
        return {"text": self.text} | ({} if self.label is None else {"label": self.label})


@dataclass(frozen=True, slots=True)
class Labelled(Placed):
    """One text and the names of its labels."""

    text: str
    names: tuple[str, ...]
    path: str = ""
    line: int = 0

    @property
    def texts(self) -> dict[str, str]:
        """What an encoder reads, by name."""
        return {"text": self.text}

    @property
    def labels(self) -> tuple[str, ...]:
        """Its labels."""
        return self.names

    @property
    def row(self) -> dict[str, Any]:
        """A table's row that is read as this record."""
        return {"text": self.text, "labels": list(self.names)}


@dataclass(frozen=True, slots=True)
class Tagged(Placed):
    """One sentence for token classification: its words, and a tag for each of them.

    `apart`: each word has a line of its own, from `line` on.
    """

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    path: str = ""
    line: int = 0
    apart: bool = False

    @property
    def texts(self) -> dict[str, str]:
        """The words with spaces between them."""
        return {"tokens": " ".join(self.tokens)}

    @property
    def labels(self) -> tuple[str, ...]:
        """The tags."""
        return self.tags

    @property
    def row(self) -> dict[str, Any]:
        """A table's row that is read as this record."""
        return {"tokens": list(self.tokens), "tags": list(self.tags)}

    def wrong(self, place: int, message: str) -> DataError:
        """A DataError that points at the word at `place`: by its line, or by name."""
        if self.apart:
            return DataError(message, self.path, self.line + place)
        return self.error(f"word {place + 1}, {self.tokens[place]!r}: {message}")


@dataclass(frozen=True, slots=True)
class Passage(Placed):
    """A question about a passage.

    `answers` are (text, start) with `context[start:start + len(text)] == text`, start in
    characters; none: the passage doesn't answer the question.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...] = ()
    path: str = ""
    line: int = 0

    @property
    def texts(self) -> dict[str, str]:
        """The question and the passage."""
        return {"question": self.question, "context": self.context}

    @property
    def labels(self) -> tuple[str, ...]:
        """Whether there is an answer."""
        return ("answered" if self.answers else "unanswerable",)

    @property
    def row(self) -> dict[str, Any]:
        """A table's row that is read as this record."""
        texts, starts = [text for text, _ in self.answers], [start for _, start in self.answers]
        answers = {"text": texts, "answer_start": starts}
        return {"id": self.id, **self.texts, "answers": answers}


@dataclass(frozen=True, slots=True)
class Pair(Placed):
    """Two texts that belong together, and the name of their relation where there is one.

    `negatives` are texts that look as if they belonged to the first one, and don't.
    """

    text: str
    other: str
    label: str | None = None
    path: str = ""
    line: int = 0
    negatives: tuple[str, ...] = ()

    @property
    def texts(self) -> dict[str, str]:
        """Both texts."""
        return {"text": self.text, "other": self.other}

    @property
    def labels(self) -> tuple[str, ...]:
        """The label, where there is one."""
        return () if self.label is None else (self.label,)

    @property
    def row(self) -> dict[str, Any]:
        """A table's row that is read as this record."""
        label = {} if self.label is None else {"label": self.label}
        negatives = {"negatives": list(self.negatives)} if self.negatives else {}
        return self.texts | label | negatives


@dataclass(frozen=True, slots=True)
class Document(Placed):
    """A document by its sentences, which of them make a summary, and perhaps a reference."""

    sentences: tuple[str, ...]
    chosen: tuple[bool, ...]
    summary: str | None = None
    path: str = ""
    line: int = 0

    @property
    def texts(self) -> dict[str, str]:
        """The sentences with spaces between them."""
        return {"text": " ".join(self.sentences)}

    @property
    def labels(self) -> tuple[str, ...]:
        """What each sentence is."""
        return tuple("summary" if mark else "rest" for mark in self.chosen)

    @property
    def row(self) -> dict[str, Any]:
        """A table's row that is read as this record."""
        summary = {} if self.summary is None else {"summary": self.summary}
        return {"sentences": list(self.sentences), "labels": list(map(int, self.chosen))} | summary

    @property
    def reference(self) -> str:
        """What a summary is compared with: the reference, or the chosen sentences."""
        if self.summary is not None:
            return self.summary
        return " ".join(s for s, mark in zip(self.sentences, self.chosen, strict=True) if mark)


Record = Example | Labelled | Tagged | Passage | Pair | Document
