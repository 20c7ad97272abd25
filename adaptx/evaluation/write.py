"""An evaluation on disk: a folder of its own, and the scores inside the adapters' folders.

adaptx.json                                the manifest
report.json                                every score, confusion matrix and difference
scores.png                                 the first metric by language, a bar for each adapter
confusion-<data>-<place>-<adapter>.png     one for each adapter and data set, of labels
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptx import storage
from adaptx.adapters.folder import record_evaluation
from adaptx.evaluation.report import Report
from adaptx.evaluation.side_by_side import SideBySide


def write_evaluation(
    folder: Path, compared: SideBySide, result: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Write `result` and the plots of `compared` into a new folder, whole or not at all."""
    from adaptx.evaluation.plots import confusion_plot, scores_plot

    with storage.new_folder(folder, overwrite=overwrite, kind="evaluation") as made:
        storage.write_json(made / "report.json", result)
        scores_plot(compared, made / "scores.png")
        for language in compared.languages:
            for place, adapter in enumerate(compared.adapters, 1):
                report = compared.report(adapter, language)
                if not isinstance(report, Report):
                    continue
                slug = re.sub(r"[^\w.-]+", "_", adapter)[-60:]
                path = made / f"confusion-{language}-{place}-{slug}.png"
                confusion_plot(report, path, adapter, language)
        storage.write_manifest(made, "evaluation", {})


def write_card(folder: Path, reports: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Write one adapter's scores, less the confusion matrices, and its card into its folder.

    `reports` and `data` are those of report.json: by the name of the data set.
    """
    record_evaluation(
        folder,
        {
            name: {key: value for key, value in report.items() if key != "confusion"}
            | {key: data[name][key] for key in ("file", "sha256") if name in data}
            for name, report in reports.items()
        },
    )
