"""From an adapter and labelled rows to a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptx.errors import LabelSetsDiffer, OptionError, choices
from adaptx.evaluation.report import AnyReport, report_of

if TYPE_CHECKING:
    from adaptx.adapters.adapter import Adapter
    from adaptx.encoder.encoder import Encoder
    from adaptx.tasks import Task


def evaluate(
    encoder: Encoder,
    adapter: Adapter,
    records: Sequence[Any],
    *,
    labels: Sequence[str] | None = None,
    batch_size: int = 32,
) -> AnyReport:
    """Answer labelled records with an adapter; returns the answers beside the labels.

    `labels` sets the order that a report of classification counts in; without it the adapter's own.
    Adapters with the same labels in another order can so be compared. Raises OptionError for an
    adapter without answers and for records of another task, DataError for a label that it can't
    answer, LabelSetsDiffer for `labels` that aren't its own.
    """
    task = checked_task(adapter.name, adapter.task)
    names = tuple(labels or task.labels)
    check_labels({"the labels asked for": names, adapter.name: task.labels})
    task.check(records)
    answers = encoder.predict(task.inputs(records), adapter, batch_size=batch_size)
    return report_of(task, records, answers, names)


def checked_task(name: str, task: Task | None) -> Task:
    """An adapter's task, whose answers can be scored; OptionError where it gives none."""
    if task is None:
        raise no_head(name)
    if not task.answers:
        raise OptionError(
            f"Adapter {name!r} is of the task {task.kind!r}, which is for training alone: it "
            f"answers nothing, and its {choices(task.metrics)} is measured in training, on --dev "
            f"(dev=…)."
        )
    return task


def no_head(name: str) -> OptionError:
    """The error for an adapter that answers with vectors."""
    return OptionError(
        f"Adapter {name!r} has no head: it answers with vectors, not labels, so there is nothing "
        f"to score. Evaluate an adapter that was trained for labels."
    )


def check_labels(labels: Mapping[str, Sequence[str]]) -> None:
    """Raise LabelSetsDiffer unless all have the same labels, in whatever order."""
    (first, wanted), *others = labels.items()
    for name, found in others:
        if set(found) != set(wanted):
            only = [sorted(set(one) - set(two)) for one, two in ((wanted, found), (found, wanted))]
            raise LabelSetsDiffer(
                f"{first!r} and {name!r} have different labels, so their scores don't compare: "
                f"only {first!r} has {choices(only[0]) or 'none'}; only {name!r} has "
                f"{choices(only[1]) or 'none'}. Evaluate them one by one, or train one of them "
                f"again with the labels of the other."
            )
