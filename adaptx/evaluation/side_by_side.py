"""Reports of several adapters on several data sets, and how the adapters differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptx.evaluation.compare import Difference, paired_bootstrap
from adaptx.evaluation.metrics import METRICS
from adaptx.evaluation.report import Report

ALL = "all"  # the rows of every language together


@dataclass(frozen=True)
class SideBySide:
    """`reports[adapter][language]`: every adapter on the same rows, in one order of labels."""

    reports: Mapping[str, Mapping[str, Report]]

    @property
    def adapters(self) -> list[str]:
        """The adapters' names; the others are compared with the first."""
        return list(self.reports)

    @property
    def languages(self) -> list[str]:
        """The data sets' names, and ALL when there are several."""
        names = list(self.reports[self.adapters[0]])
        return names if len(names) == 1 else [*names, ALL]

    def report(self, adapter: str, language: str) -> Report:
        """One adapter on one data set, or on ALL."""
        reports = self.reports[adapter]
        return Report.pooled(list(reports.values())) if language == ALL else reports[language]

    def difference(self, adapter: str, language: str, metric: str = "accuracy") -> Difference:
        """An adapter's score less the first adapter's; for ALL, rows are drawn by language."""
        first, other = self.report(self.adapters[0], language), self.report(adapter, language)
        sizes = [report.rows for report in self.reports[adapter].values()]
        groups = np.repeat(np.arange(len(sizes)), sizes) if language == ALL else None
        return paired_bootstrap(
            first.targets, other.predicted, first.predicted, metric=metric, groups=groups
        )

    def to_json(self) -> dict[str, Any]:
        """Every report, and every difference to the first adapter, by adapter and language."""
        first = self.adapters[0]
        return {
            adapter: {
                "languages": {
                    language: self.report(adapter, language).to_json()
                    for language in self.languages
                },
                "differences_to_first": {
                    language: {
                        metric: self.difference(adapter, language, metric).to_json()
                        for metric in METRICS
                    }
                    for language in self.languages
                    if adapter != first
                },
            }
            for adapter in self.adapters
        }
