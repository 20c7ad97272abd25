"""What an encoder's outputs mean: one file a task. No torch at the top of any of them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

from adaptx.errors import FolderError, OptionError, choices
from adaptx.tasks.base import Prediction, Task
from adaptx.tasks.classification import Classification
from adaptx.tasks.masked_language import MaskedLanguage
from adaptx.tasks.multi_label import MultiLabel
from adaptx.tasks.pairs import PairClassification
from adaptx.tasks.question_answering import QuestionAnswering
from adaptx.tasks.retrieval import Retrieval
from adaptx.tasks.similarity import Similarity
from adaptx.tasks.summarization import Summarization
from adaptx.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    task.kind: task
    for task in (
        Classification,
        MultiLabel,
        PairClassification,
        TokenClassification,
        QuestionAnswering,
        Retrieval,
        Similarity,
        MaskedLanguage,
        Summarization,
    )
}

__all__ = [
    "TASKS",
    "Classification",
    "MaskedLanguage",
    "MultiLabel",
    "PairClassification",
    "Prediction",
    "QuestionAnswering",
    "Retrieval",
    "Similarity",
    "Summarization",
    "Task",
    "TokenClassification",
    "make_task",
    "task_from_json",
]


def make_task(kind: str, **options: Any) -> Task:
    """A task by its name, with the options that aren't None or empty.

    Raises OptionError for a name that there isn't, and for an option that the task hasn't.
    """
    if kind not in TASKS:
        raise OptionError(f"There is no task {kind!r}; there is {choices(TASKS)}.")
    given = {name: value for name, value in options.items() if value not in (None, "", (), [])}
    known = [field.name for field in fields(cast(Any, TASKS[kind]))]
    if unknown := sorted(given.keys() - set(known)):
        raise OptionError(
            f"The task {kind!r} has no option {choices(unknown)}; it has {choices(known)}."
        )
    return TASKS[kind](**given)


def task_from_json(value: dict[str, Any]) -> Task:
    """The task that `to_json` wrote down; raises FolderError when it isn't one of TASKS."""
    options = dict(value)
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in TASKS:
        raise FolderError(f"The task {kind!r} is none that this adaptx knows: {choices(TASKS)}.")
    try:
        return TASKS[kind](**options)
    except (TypeError, OptionError) as error:
        raise FolderError(f"The task {kind!r} is written down wrongly: {error}.") from None
