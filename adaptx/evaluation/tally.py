"""A score that is a sum over rows divided by another, or the mean of several such.

{metric: (numerators, denominators)}, fp64 `[N]` each, or `[N, L]`, then the mean over L.
N rows, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Tally = dict[str, tuple[np.ndarray, np.ndarray]]


def share(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Sums divided; 0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros_like(above, dtype=np.float64), where=below > 0)


def ratio(above: np.ndarray, below: np.ndarray) -> float:
    """The score of all rows."""
    return float(share(above.sum(0), below.sum(0)).mean())


def joined(tallies: Sequence[Tally]) -> Tally:
    """The rows of all, one tally after another."""
    found: Tally = {}
    for name in tallies[0]:
        above, below = zip(*(tally[name] for tally in tallies), strict=True)
        found[name] = np.concatenate(above), np.concatenate(below)
    return found
