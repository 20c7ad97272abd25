"""Scores of predictions against labels (scikit-learn's definitions)."""

from __future__ import annotations

from typing import Any

import numpy as np

METRICS = ("accuracy", "macro_f1", "weighted_f1")


def classification_scores(targets: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy, and F1 averaged over labels: plain (macro) and by their share (weighted).

    Both int64 `[rows]`. A label that stands in neither is left out of the averages.
    """
    from sklearn.metrics import accuracy_score, f1_score

    def f1(average: str) -> float:
        return float(f1_score(targets, predicted, average=average, zero_division=0))

    return {
        "accuracy": float(accuracy_score(targets, predicted)),
        "macro_f1": f1("macro"),
        "weighted_f1": f1("weighted"),
    }


def score_line(scores: dict[str, Any]) -> str:
    """`accuracy 0.794  macro F1 0.781  weighted F1 0.792`."""
    return "  ".join(f"{name.replace('_f1', ' F1')} {scores[name]:.3f}" for name in METRICS)
