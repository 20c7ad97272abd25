"""SQuAD's JSON -> questions about passages (Rajpurkar et al. 2016, arXiv 1606.05250).

{"data": [{"paragraphs": [{"context": "…", "qas": [{"id": "…", "question": "…",
    "answers": [{"text": "…", "answer_start": 12}]}]}]}]}

The same questions may stand in a table with the columns that `datasets` gives SQuAD: id, question,
context, and answers = {"text": […], "answer_start": […]}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adaptx.data.records import Passage
from adaptx.data.rows import Row
from adaptx.data.tables import read_lines
from adaptx.errors import DataError, choices


def read_squad(path: Path, *, labelled: bool = True) -> Iterator[Passage | DataError]:
    """The questions of a SQuAD 1.1 or 2.0 file, in its order.

    With `labelled` off, a question may be without its list of answers.
    """
    try:
        value = json.loads("".join(line.decoded() for line in read_lines(path)))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"this isn't JSON: {error}.", path) from None
    for place, entry in enumerate(_list(value, "data", "the file", path), 1):
        paragraphs = _list(entry, "paragraphs", f"entry {place} of data", path)
        for number, paragraph in enumerate(paragraphs, 1):
            where = f"paragraph {number} of entry {place}"
            questions = _list(paragraph, "qas", where, path)
            context = paragraph.get("context")
            for count, question in enumerate(questions, 1):
                try:
                    asked = question if labelled else _perhaps_answered(question)
                    yield _question(asked, context, f"question {count} of {where}", path)
                except DataError as error:
                    yield error


def passage_of(row: Row, *, labelled: bool = True) -> Passage:
    """The question of a table's row; `labelled` as in `read_squad`."""
    for name in ("id", "question", "context", *(["answers"] if labelled else [])):
        row.column(name, (), name)
    answers = row.values.get("answers")
    if answers is None and not labelled:
        answers = {"text": [], "answer_start": []}
    lists = answers if isinstance(answers, dict) else {}
    texts, starts = lists.get("text"), lists.get("answer_start")
    if not isinstance(texts, list) or not isinstance(starts, list):
        raise row.error(
            'the answers must be {"text": ["…"], "answer_start": [12]}, two lists of one length.'
        )
    if len(texts) != len(starts):
        raise row.error(f"{len(texts)} answer texts, and {len(starts)} values of answer_start.")
    found = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    value = {**row.values, "answers": found}
    return _question(value, row.values["context"], "the row", row.path, row.line)


def _list(value: object, key: str, where: str, path: Path) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        has = f"has {choices(value) or 'nothing'}" if isinstance(value, dict) else "is no object"
        raise DataError(f"{where} needs a list {key!r}, as SQuAD's JSON has it, and {has}.", path)
    return found


def _perhaps_answered(question: Any) -> Any:
    """A question, with an empty list of answers where it has none."""
    if not isinstance(question, dict) or question.get("answers") is not None:
        return question
    return {**question, "answers": []}


def _question(value: Any, context: Any, where: str, path: str | Path, line: int = 0) -> Passage:
    def error(message: str) -> DataError:
        return DataError(message, path, line or None)

    if not isinstance(value, dict) or not isinstance(value.get("id"), str) or not value["id"]:
        raise error(f"{where} has no id (a text).")
    name = f"question {value['id']!r}"
    for key, text in (("question", value.get("question")), ("context", context)):
        if not isinstance(text, str) or not text.strip():
            raise error(f"{name}: its {key} is {text!r}, and a text is needed.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as bad:
            raise error(f"{name}: its {key} holds a lone surrogate ({bad}).") from None
    answers = value.get("answers")
    if not isinstance(answers, list):
        raise error(f"{name}: its answers are {answers!r}, and a list is needed (it may be empty).")
    found = []
    for answer in answers:
        text, start = (
            (answer.get("text"), answer.get("answer_start"))
            if isinstance(answer, dict)
            else (None, None)
        )
        if not isinstance(text, str) or not text or type(start) is not int:
            raise error(
                f"{name}: the answer {answer!r} needs a text, and answer_start in characters."
            )
        if start < 0 or context[start : start + len(text)] != text:
            raise error(f"{name}: {_misplaced(text, start, context)}")
        found.append((text, start))
    return Passage(value["id"], value["question"], context, tuple(found), str(path), line)


def _misplaced(text: str, start: int, context: str) -> str:
    there = context[start : start + len(text)] if start >= 0 else ""
    places, at = [], context.find(text)
    while at >= 0:
        places.append(at)
        at = context.find(text, at + 1)
    stands = f"it stands at {choices(places)}" if places else "it stands nowhere in the passage"
    return (
        f"the answer {text!r} isn't at its answer_start {start}, where the passage has {there!r}; "
        f"{stands}. Starts are counted in characters, not bytes."
    )
