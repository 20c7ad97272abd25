"""Similarity: correlations of scores with gold ones, and how sure their difference is.

N rows, R resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptx.evaluation.compare import Difference

RESAMPLES = 2000
CORRELATIONS = ("spearman", "pearson")  # metrics of numbers, which no sum over rows gives


def correlation(metric: str, gold: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Spearman's or Pearson's along the last axis; 0 where all values are alike."""
    if metric == "spearman":
        from scipy.stats import rankdata

        gold, said = rankdata(gold, axis=-1), rankdata(said, axis=-1)
    a = gold - gold.mean(-1, keepdims=True)
    b = said - said.mean(-1, keepdims=True)
    below = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    above = (a * b).sum(-1)
    return np.divide(above, below, out=np.zeros_like(below), where=below > 1e-12)


def correlation_resamples(
    gold: np.ndarray, said: np.ndarray, *, metric: str, seed: int = 0
) -> np.ndarray:
    """The correlation of each resample of the rows, `[R]`."""
    places = np.random.default_rng(seed).integers(len(gold), size=(RESAMPLES, len(gold)))
    return correlation(metric, gold[places], said[places])


def paired_correlation(
    gold: np.ndarray,
    a: np.ndarray,
    b: np.ndarray | None,
    *,
    metric: str,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> Difference:
    """The correlation of `a` `[N]` less that of `b` (None: less 0), by the bootstrap over rows."""
    groups_N = np.zeros(len(gold), np.int64) if groups is None else np.asarray(groups)
    generator: Any = np.random.default_rng(seed)

    def difference(places: np.ndarray) -> np.ndarray:
        less = correlation(metric, gold[places], b[places]) if b is not None else 0.0
        return correlation(metric, gold[places], a[places]) - less

    parts = [np.flatnonzero(groups_N == group) for group in np.unique(groups_N)]
    drawn = [generator.choice(part, (RESAMPLES, len(part))) for part in parts]
    found_R = difference(np.concatenate(drawn, axis=1))
    return Difference.of(metric, float(difference(np.arange(len(gold)))), found_R, len(gold))
