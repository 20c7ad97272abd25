"""What an encoder's outputs mean: one file a task. No torch at the top of any of them."""

from __future__ import annotations

from typing import Any

from adaptx.errors import FolderError, OptionError, choices
from adaptx.tasks.base import Prediction
from adaptx.tasks.classification import Classification

TASKS = {"classification": Classification}

__all__ = ["TASKS", "Classification", "Prediction", "task_from_json"]


def task_from_json(value: dict[str, Any]) -> Classification:
    """The task that `to_json` wrote down; raises FolderError when it isn't one of TASKS."""
    options = dict(value)
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in TASKS:
        raise FolderError(f"The task {kind!r} is none that this adaptx knows: {choices(TASKS)}.")
    try:
        return TASKS[kind](**options)
    except (TypeError, OptionError) as error:
        raise FolderError(f"The task {kind!r} is written down wrongly: {error}.") from None
