"""Scores by group of rows, and how far they lie apart, by the bootstrap over each group's rows.

Rows of two groups are different rows, so each group is drawn by itself: its interval is that of its
own resamples, and that of a gap is of their differences (Efron & Tibshirani 1993, chapter 8).

N rows, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adaptx.errors import OptionError
from adaptx.evaluation.compare import Difference, ratio_resamples
from adaptx.evaluation.correlation import CORRELATIONS, correlation_resamples
from adaptx.evaluation.metrics import scores_of
from adaptx.evaluation.report import AnyReport, Report, report_of
from adaptx.tasks import Task


@dataclass(frozen=True)
class Group:
    """One group's rows, its scores, and the 95% interval of the first."""

    rows: int
    scores: dict[str, float]
    interval: tuple[float, float]


@dataclass(frozen=True)
class GroupAudit:
    """Scores by group.

    metric   the one with intervals, the task's first
    best, worst  the groups whose score is the highest and the lowest
    gap      the best's score less the worst's
    without  rows that name no group: they are left out
    """

    metric: str
    groups: Mapping[str, Group]
    best: str
    worst: str
    gap: Difference
    without: int

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def audit_groups(
    task: Task, records: Sequence[Any], answers: Sequence[Any], groups: Sequence[str]
) -> GroupAudit:
    """Scores of answers by the group of each row; raises OptionError as `check_groups`."""
    names = check_groups(records, groups)
    metric = task.metrics[0]
    found, drawn = {}, {}
    for seed, name in enumerate(names):
        places = [i for i, group in enumerate(groups) if group == name]
        report = report_of(task, [records[i] for i in places], [answers[i] for i in places])
        drawn[name] = _resamples(report, metric, seed)
        low, high = np.quantile(drawn[name], [0.025, 0.975])
        found[name] = Group(len(places), report.scores, (float(low), float(high)))
    ordered = sorted(names, key=lambda name: found[name].scores[metric])
    worst, best = ordered[0], ordered[-1]
    gap = Difference.of(
        metric,
        found[best].scores[metric] - found[worst].scores[metric],
        drawn[best] - drawn[worst],
        found[best].rows + found[worst].rows,
    )
    without = sum(not name.strip() for name in groups)
    return GroupAudit(metric, found, best, worst, gap, without)


def check_groups(records: Sequence[Any], groups: Sequence[str]) -> list[str]:
    """The names of the groups of the records; an empty name is none.

    Raises OptionError where there are fewer than two, or not one for each record.
    """
    if len(groups) != len(records):
        raise OptionError(f"{len(groups)} groups for {len(records)} rows: give one for each.")
    names = sorted({name for name in groups if name.strip()})
    if len(names) < 2:
        raise OptionError(
            f"The rows name {len(names)} group{'' if len(names) == 1 else 's'} "
            f"({', '.join(names) or 'every row is empty'}): a gap needs two."
        )
    return names


def _resamples(report: AnyReport, metric: str, seed: int) -> np.ndarray:
    """The metric of each resample, `[R]`."""
    if isinstance(report, Report):
        right = (report.targets == report.predicted).astype(np.float64)
        return ratio_resamples(right, np.ones(report.rows), seed=seed)
    if metric in CORRELATIONS:
        gold, said = scores_of(report.records, report.answers)
        return correlation_resamples(gold, said, metric=metric, seed=seed)
    return ratio_resamples(*report.tally[metric], seed=seed)
