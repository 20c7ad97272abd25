"""Is one set of answers better than another, on the same rows? The paired bootstrap.

Rows are drawn again, with replacement, as often as there are; both systems are scored on the same
draw; the differences of many draws show how much the choice of test rows alone moves them (Efron &
Tibshirani 1993, chapter 13; for comparing systems: Koehn 2004, "Statistical significance tests for
machine translation evaluation").

Dimensions: N rows, S seeds, K kinds of rows, L labels, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adaptx.errors import OptionError, choices
from adaptx.evaluation.tally import share
from adaptx.tasks.classification import METRICS

_AT_ONCE = 4_000_000  # counts in memory at once: 32 MB
_ZERO = 1e-12  # two equal sums of shares may differ by rounding


@dataclass(frozen=True)
class Difference:
    """The score of a, less that of b.

    difference      on the rows as they are
    low, high       95% percentile interval over the resamples
    not_above_zero  share of the resamples in which a isn't better than b: a one-sided p-value
    """

    metric: str
    difference: float
    low: float
    high: float
    not_above_zero: float
    rows: int
    resamples: int

    @classmethod
    def of(cls, metric: str, difference: float, found_R: np.ndarray, rows: int) -> Difference:
        """From the difference on the rows as they are, and those of the resamples `[R]`."""
        low, high = np.quantile(found_R, [0.025, 0.975])
        not_above = float((found_R <= _ZERO).mean())
        return cls(metric, difference, float(low), float(high), not_above, rows, len(found_R))

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def paired_bootstrap(
    targets: np.ndarray | Sequence[Any],
    a: np.ndarray | Sequence[Any],
    b: np.ndarray | Sequence[Any],
    *,
    metric: str = "accuracy",
    groups: np.ndarray | Sequence[Any] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """How sure the difference of a metric between answers `a` and `b` to the same rows is.

    `targets` `[N]`; `a` and `b` each `[N]`, or `[S, N]` for answers of several seeds, whose scores
    are averaged (the seeds themselves aren't resampled). Labels are numbers or names. `groups`
    `[N]`, such as each row's language: rows are then drawn within their group, so that every
    resample has as many rows of each as there are. The metric is of METRICS, over all rows.
    Raises OptionError for shapes that don't fit together or an unknown metric.
    """
    y_N, a_SN, b_SN = np.asarray(targets), np.atleast_2d(a), np.atleast_2d(b)
    groups_N = np.zeros(y_N.shape, dtype=np.int64) if groups is None else np.asarray(groups)
    if (
        y_N.ndim != 1
        or not y_N.size
        or {a_SN.shape[1:], b_SN.shape[1:], groups_N.shape} != {y_N.shape}
    ):
        raise OptionError(
            f"A paired comparison needs the same rows: there are {list(y_N.shape)} labels, "
            f"{list(a_SN.shape)} and {list(b_SN.shape)} answers, {list(groups_N.shape)} groups."
        )
    if metric not in METRICS:
        raise OptionError(f"metric={metric!r} is none of {choices(METRICS)}.")
    if resamples < 1:
        raise OptionError(f"resamples={resamples} must be at least 1.")
    labels, codes = np.unique(
        np.concatenate([y_N, a_SN.ravel(), b_SN.ravel()]), return_inverse=True
    )
    codes_MN = codes.reshape(-1, len(y_N))  # targets, then the seeds of a, then those of b
    groups_N = np.unique(groups_N, return_inverse=True)[1]

    # Rows alike in group, label and every answer are of one kind. A resample is how often each
    # kind is drawn: a multinomial count, far smaller than a list of rows, and blind to their order.
    kinds, counts_K = np.unique(np.vstack([groups_N, codes_MN]), axis=1, return_counts=True)
    y_K, of_a, of_b = kinds[1], kinds[2 : 2 + len(a_SN)], kinds[2 + len(a_SN) :]

    def difference(counts_RK: np.ndarray) -> np.ndarray:
        scores = (_scores(metric, counts_RK, y_K, of, len(labels)) for of in (of_a, of_b))
        return next(scores) - next(scores)

    return _bootstrap(metric, difference, counts_K, kinds[0], resamples, seed)


def paired_ratio(
    a: tuple[np.ndarray, np.ndarray],
    b: tuple[np.ndarray, np.ndarray],
    *,
    metric: str,
    groups: np.ndarray | Sequence[Any] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """The same for a score that is a sum over rows divided by another, as a span's F1 is.

    `a` and `b` are (numerators, denominators) of the same rows, as in adaptx.evaluation.tally.
    """
    parts = [np.asarray(part, dtype=np.float64) for part in (*a, *b)]
    rows = len(parts[0])
    groups_N = np.zeros(rows, np.int64) if groups is None else np.asarray(groups)
    if not rows or {len(part) for part in parts} | {len(groups_N)} != {rows}:
        raise OptionError(
            f"A paired comparison needs the same rows: there are {[len(part) for part in parts]} "
            f"and {len(groups_N)} groups."
        )
    groups_N = np.unique(groups_N, return_inverse=True)[1]

    def difference(counts_RN: np.ndarray) -> np.ndarray:
        return _shares(counts_RN, *parts[:2]) - _shares(counts_RN, *parts[2:])

    return _bootstrap(metric, difference, np.ones(rows), groups_N, resamples, seed)


def ratio_resamples(
    above: np.ndarray, below: np.ndarray, *, resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """One such score of each resample of its rows, `[R]`."""
    rows = np.ones(len(below))

    def score(counts_RN: np.ndarray) -> np.ndarray:
        return _shares(counts_RN, above, below)

    return _resampled(score, rows, np.zeros(len(rows), np.int64), resamples, seed)


def _shares(counts_RN: np.ndarray, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    found = share(counts_RN @ above, counts_RN @ below)
    shares: np.ndarray = found.reshape(len(counts_RN), -1).mean(1)
    return shares


def _bootstrap(
    metric: str,
    difference: Callable[[np.ndarray], np.ndarray],
    counts_K: np.ndarray,
    groups_K: np.ndarray,
    resamples: int,
    seed: int,
) -> Difference:
    """`difference` gives those of counts `[R, K]`; each resample draws within the groups."""
    found_R = _resampled(difference, counts_K, groups_K, resamples, seed)
    whole = float(difference(counts_K[None])[0])
    return Difference.of(metric, whole, found_R, int(counts_K.sum()))


def _resampled(
    score: Callable[[np.ndarray], np.ndarray],
    counts_K: np.ndarray,
    groups_K: np.ndarray,
    resamples: int,
    seed: int,
) -> np.ndarray:
    """What `score` gives of the counts of each resample, `[R]`."""
    generator = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // len(counts_K))
    return np.concatenate(
        [
            score(_draw(generator, counts_K, groups_K, min(step, resamples - start)))
            for start in range(0, resamples, step)
        ]
    )


def _draw(
    generator: np.random.Generator, counts_K: np.ndarray, groups_K: np.ndarray, resamples: int
) -> np.ndarray:
    """How often each kind is drawn in each resample, `[R, K]`: group by group, with replacement."""
    drawn = np.empty((resamples, len(counts_K)))
    for group in np.unique(groups_K):
        inside = groups_K == group
        rows = counts_K[inside].sum()
        drawn[:, inside] = generator.multinomial(rows, counts_K[inside] / rows, size=resamples)
    return drawn


def _scores(
    metric: str, counts_RK: np.ndarray, y_K: np.ndarray, answers_SK: np.ndarray, labels: int
) -> np.ndarray:
    """The metric of each resample `[R]`, averaged over the seeds."""
    if metric == "accuracy":
        return counts_RK @ (answers_SK == y_K).mean(0) / counts_RK.sum(1)
    names_L = np.arange(labels)
    is_KL = y_K[:, None] == names_L
    true_RL = counts_RK @ is_KL
    found = []
    for answers_K in answers_SK:
        said_KL = answers_K[:, None] == names_L
        hits_RL, both_RL = counts_RK @ (is_KL & said_KL), true_RL + counts_RK @ said_KL
        f1_RL = 2 * hits_RL / np.maximum(both_RL, 1)  # a label in neither counts for nothing
        weights_RL = both_RL > 0 if metric == "macro_f1" else true_RL
        found.append((f1_RL * weights_RL).sum(1) / weights_RL.sum(1))
    return np.mean(found, axis=0)
