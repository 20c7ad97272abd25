"""How one adapter did on one data set: its answers beside the labels, and what follows from them.

`Report` is of one label a row, `AnswersReport` of any other task. N rows, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from adaptx.errors import OptionError
from adaptx.evaluation.compare import Difference, paired_bootstrap, paired_ratio
from adaptx.evaluation.correlation import CORRELATIONS, paired_correlation
from adaptx.evaluation.metrics import (
    classification_scores,
    predicted,
    scores_of,
    tally,
    tally_by_label,
    task_scores,
)
from adaptx.evaluation.tally import Tally, joined, ratio
from adaptx.tasks import Classification, Task
from adaptx.tasks.classification import METRICS


@dataclass(frozen=True, eq=False)
class Report:
    """Answers beside labels; everything else is counted from them (scikit-learn's definitions).

    labels     names, in the order that the indices count
    targets    int64 [N], the label of each row
    predicted  int64 [N], the adapter's answer to it

    Raises OptionError when there are no rows, or not as many answers as labels.
    """

    labels: tuple[str, ...]
    targets: np.ndarray
    predicted: np.ndarray

    def __post_init__(self) -> None:
        if self.targets.shape != self.predicted.shape or self.targets.ndim != 1 or not self.rows:
            raise OptionError(
                f"A report needs one answer for each row: there are {list(self.targets.shape)} "
                f"labels and {list(self.predicted.shape)} answers."
            )

    metrics = METRICS

    def with_others(self, reports: Sequence[Report]) -> Report:
        """Its rows and those of other reports, which share its labels, as one."""
        return Report(
            self.labels,
            np.concatenate([self.targets, *(report.targets for report in reports)]),
            np.concatenate([self.predicted, *(report.predicted for report in reports)]),
        )

    def less(
        self, other: Report, metric: str = "accuracy", groups: np.ndarray | None = None
    ) -> Difference:
        """Its score less another's on the same rows (see paired_bootstrap)."""
        return paired_bootstrap(
            self.targets, self.predicted, other.predicted, metric=metric, groups=groups
        )

    @property
    def rows(self) -> int:
        """How many rows were answered."""
        return len(self.targets)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Accuracy, macro F1 and weighted F1 (see adaptx.evaluation.metrics)."""
        return classification_scores(self.targets, self.predicted)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy, by Wilson's score (Wilson 1927).

        It answers "what if other rows of the same kind had been drawn", not "what if it had been
        trained again".
        """
        from scipy.stats import binomtest

        right = int((self.targets == self.predicted).sum())
        found = binomtest(right, self.rows).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)

    @cached_property
    def by_label(self) -> dict[str, dict[str, float]]:
        """precision, recall, f1 and rows of each label; 0 where a share has nothing to divide."""
        from sklearn.metrics import precision_recall_fscore_support

        found = precision_recall_fscore_support(
            self.targets, self.predicted, labels=range(len(self.labels)), zero_division=0
        )
        return {
            label: {"precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
            for label, p, r, f, n in zip(self.labels, *found, strict=True)
        }

    @cached_property
    def confusion(self) -> np.ndarray:
        """int64 `[L, L]`: rows of label i (down) that were answered with label j (across)."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(self.targets, self.predicted, labels=range(len(self.labels)))

    @property
    def commonest(self) -> float:
        """The accuracy of always answering the commonest label: what a score is worth."""
        return float(np.bincount(self.targets).max() / self.rows)

    def to_json(self) -> dict[str, Any]:
        """Everything but the rows themselves."""
        return {
            "rows": self.rows,
            **self.scores,
            "interval": list(self.interval),
            "commonest": self.commonest,
            "labels": self.by_label,
            "confusion": self.confusion.tolist(),
        }


@dataclass(frozen=True, eq=False)
class AnswersReport:
    """Answers beside records, of a task whose scores are sums over rows, divided (metrics.Tally).

    `parts` are the reports whose rows it has, where it is of several data sets: each is counted by
    itself, so that a search is among its own data set's texts.

    Raises OptionError when there are no rows, or not as many answers as records.
    """

    task: Task
    records: Sequence[Any]
    answers: Sequence[Any]
    parts: Sequence[AnswersReport] = ()

    def __post_init__(self) -> None:
        if len(self.records) != len(self.answers) or not len(self.records):
            raise OptionError(
                f"A report needs one answer for each row: there are {len(self.records)} rows and "
                f"{len(self.answers)} answers."
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """The task's; the first has the interval."""
        return self.task.metrics

    def with_others(self, reports: Sequence[AnswersReport]) -> AnswersReport:
        """Its rows and those of other reports of the same task, as one."""
        every = (self, *reports)
        records = [record for report in every for record in report.records]
        answers = [answer for report in every for answer in report.answers]
        return AnswersReport(self.task, records, answers, every)

    def less(
        self, other: AnswersReport, metric: str, groups: np.ndarray | None = None
    ) -> Difference:
        """Its score less another's on the same rows (see paired_ratio)."""
        if self.metrics[0] in CORRELATIONS:
            gold, mine = scores_of(self.records, self.answers)
            theirs = scores_of(other.records, other.answers)[1]
            return paired_correlation(gold, mine, theirs, metric=metric, groups=groups)
        return paired_ratio(self.tally[metric], other.tally[metric], metric=metric, groups=groups)

    @property
    def rows(self) -> int:
        """How many records were answered."""
        return len(self.records)

    @cached_property
    def tally(self) -> Tally:
        """Each metric's numerator and denominator by row."""
        if self.parts:
            return joined([part.tally for part in self.parts])
        return tally(self.task, self.records, self.answers)

    @cached_property
    def scores(self) -> dict[str, float]:
        """The task's metrics."""
        if self.metrics[0] in CORRELATIONS:
            return task_scores(self.task, self.records, self.answers)
        return {name: ratio(*both) for name, both in self.tally.items()}

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the first metric: the bootstrap over rows."""
        if self.metrics[0] in CORRELATIONS:
            both = scores_of(self.records, self.answers)
            found = paired_correlation(*both, None, metric=self.metrics[0])
            return found.low, found.high
        both = self.tally[self.metrics[0]]
        nothing = (np.zeros(self.rows), np.ones(self.rows))
        found = paired_ratio(both, nothing, metric=self.metrics[0])
        return found.low, found.high

    @cached_property
    def by_label(self) -> dict[str, dict[str, float]]:
        """precision, recall, f1 and rows (gold entities) of each label that has them."""
        return {
            label: {
                **{name: ratio(*both) for name, both in found.items()},
                "rows": int(found["recall"][1].sum()),
            }
            for label, found in tally_by_label(self.task, self.records, self.answers).items()
        }

    def to_json(self) -> dict[str, Any]:
        """Everything but the rows themselves."""
        return {
            "rows": self.rows,
            **self.scores,
            "interval": list(self.interval),
            "labels": self.by_label,
        }


AnyReport = Report | AnswersReport


def report_of(
    task: Task, records: Sequence[Any], answers: Sequence[Any], labels: Sequence[str] | None = None
) -> AnyReport:
    """The report of a task's answers; `labels` as in `evaluate`."""
    if not isinstance(task, Classification):
        return AnswersReport(task, records, answers)
    names = tuple(labels or task.labels)
    place = {label: i for i, label in enumerate(names)}
    order = np.array([place[label] for label in task.labels])
    return Report(names, order[task.targets(records)], order[predicted(task, answers)])
