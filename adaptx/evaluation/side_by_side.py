"""Reports of several adapters on several data sets, and how the adapters differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptx.evaluation.compare import Difference
from adaptx.evaluation.report import AnyReport

ALL = "all"  # the rows of every language together


@dataclass(frozen=True)
class SideBySide:
    """`reports[adapter][language]`: every adapter on the same rows, in one order of labels."""

    reports: Mapping[str, Mapping[str, Any]]

    @property
    def adapters(self) -> list[str]:
        """The adapters' names; the others are compared with the first."""
        return list(self.reports)

    @property
    def languages(self) -> list[str]:
        """The data sets' names, and ALL when there are several."""
        names = list(self.reports[self.adapters[0]])
        return names if len(names) == 1 else [*names, ALL]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the scores; the first is the one that is drawn, with its interval."""
        found: tuple[str, ...] = next(iter(self.reports[self.adapters[0]].values())).metrics
        return found

    def report(self, adapter: str, language: str) -> AnyReport:
        """One adapter on one data set, or on ALL."""
        reports = self.reports[adapter]
        if language != ALL:
            found: AnyReport = reports[language]
            return found
        first, *others = reports.values()
        pooled: AnyReport = first.with_others(others)
        return pooled

    def difference(self, adapter: str, language: str, metric: str | None = None) -> Difference:
        """An adapter's score less the first adapter's; for ALL, rows are drawn by language."""
        first: Any = self.report(self.adapters[0], language)
        other: Any = self.report(adapter, language)
        sizes = [report.rows for report in self.reports[adapter].values()]
        groups = np.repeat(np.arange(len(sizes)), sizes) if language == ALL else None
        found: Difference = other.less(first, metric or self.metrics[0], groups)
        return found

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
                        for metric in self.metrics
                    }
                    for language in self.languages
                    if adapter != first
                },
            }
            for adapter in self.adapters
        }
