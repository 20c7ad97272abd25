"""Search: how far down its own second text stands, among those of all pairs, for each first one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptx.evaluation.tally import Tally

_AT_ONCE = 1024  # searches


def rank_tally(vectors: Sequence[np.ndarray]) -> Tally:
    """MRR, recall at 1 and 10 and nDCG at 10 of pairs' vectors `[2, H]` each, of length 1.

    Texts that are as near as its own count as before it.
    """
    a_NH, b_NH = np.stack(vectors).swapaxes(0, 1)
    ranks = np.empty(len(a_NH))
    for start in range(0, len(a_NH), _AT_ONCE):
        cosines = a_NH[start : start + _AT_ONCE] @ b_NH.T
        places = np.arange(len(cosines))
        own = cosines[places, start + places]
        cosines[places, start + places] = -np.inf
        ranks[start : start + len(cosines)] = 1 + (cosines >= own[:, None]).sum(1)
    ones = np.ones(len(ranks))
    return {
        "mrr": (1 / ranks, ones),
        "recall_at_1": ((ranks == 1) * 1.0, ones),
        "recall_at_10": ((ranks <= 10) * 1.0, ones),
        "ndcg_at_10": (np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0), ones),
    }
