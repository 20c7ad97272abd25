"""Several labels for a row: F1 of all labels together, and of each.

N rows, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from adaptx.evaluation.tally import Tally
from adaptx.tasks import MultiLabel


def set_tally(task: MultiLabel, records: Sequence[Any], answers: Sequence[Any]) -> Tally:
    """F1 of all labels together, its mean over labels, and rows with all labels right."""
    gold_NL, said_NL = _named(task, records, answers)
    right_NL = gold_NL * said_NL
    return {
        "micro_f1": (2 * right_NL.sum(1), (gold_NL + said_NL).sum(1)),
        "macro_f1": (2 * right_NL, gold_NL + said_NL),
        "accuracy": ((gold_NL == said_NL).all(1) * 1.0, np.ones(len(gold_NL))),
    }


def set_tally_by_label(
    task: MultiLabel, records: Sequence[Any], answers: Sequence[Any]
) -> dict[str, Tally]:
    """f1, precision and recall of each label."""
    gold_NL, said_NL = _named(task, records, answers)
    found: dict[str, Tally] = {}
    for i, label in enumerate(task.labels):
        gold, said = gold_NL[:, i], said_NL[:, i]
        right = gold * said
        found[label] = {
            "f1": (2 * right, gold + said),
            "precision": (right, said),
            "recall": (right, gold),
        }
    return found


def _named(
    task: MultiLabel, records: Sequence[Any], answers: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """fp64 `[N, L]`: which labels each row has, and which it was given."""
    said = [[float(label in answer.labels) for label in task.labels] for answer in answers]
    return task.targets(records).astype(np.float64), np.array(said)
