"""How one adapter did on one data set: its answers beside the labels, and what follows from them.

Dimensions: N rows, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from adaptx.errors import OptionError
from adaptx.evaluation.metrics import classification_scores


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

    @classmethod
    def pooled(cls, reports: Sequence[Report]) -> Report:
        """All rows of several reports, which share their labels, as one."""
        return cls(
            reports[0].labels,
            np.concatenate([report.targets for report in reports]),
            np.concatenate([report.predicted for report in reports]),
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
            "accuracy_interval": list(self.interval),
            "commonest": self.commonest,
            "labels": self.by_label,
            "confusion": self.confusion.tolist(),
        }
