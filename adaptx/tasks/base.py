"""What every task shares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """The answer to one row: the likeliest label, its probability, and every label's."""

    label: str
    score: float
    scores: dict[str, float]
