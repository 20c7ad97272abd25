"""Search: how far down its own second text stands, among those of all pairs, for each first one.

What stands in the data as a right answer to a query is no error of it: texts equal to its own
second one, or to that of another pair with the same first text, are left out of its search (the
"filtered" ranks of Bordes et al. 2013), as the training loss leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from adaptx.data.records import Pair
from adaptx.evaluation.tally import Tally

_AT_ONCE = 1024  # searches


def rank_tally(records: Sequence[Pair], vectors: Sequence[np.ndarray]) -> Tally:
    """MRR, recall at 1 and 10 and nDCG at 10 of pairs' vectors `[2, H]` each, of length 1.

    Texts that are as near as its own count as before it.
    """
    a_NH, b_NH = np.stack(vectors).swapaxes(0, 1)
    queries = _numbered(record.text for record in records)
    texts_N = np.array(_numbered(record.other for record in records))
    right: dict[int, set[int]] = {}
    for query, text in zip(queries, texts_N.tolist(), strict=True):
        right.setdefault(query, set()).add(text)
    ranks = np.empty(len(a_NH))
    for start in range(0, len(a_NH), _AT_ONCE):
        cosines = a_NH[start : start + _AT_ONCE] @ b_NH.T
        places = np.arange(len(cosines))
        own = cosines[places, start + places]
        for place in places:
            cosines[place, np.isin(texts_N, list(right[queries[start + place]]))] = -np.inf
        ranks[start : start + len(cosines)] = 1 + (cosines >= own[:, None]).sum(1)
    ones = np.ones(len(ranks))
    return {
        "mrr": (1 / ranks, ones),
        "recall_at_1": ((ranks == 1) * 1.0, ones),
        "recall_at_10": ((ranks <= 10) * 1.0, ones),
        "ndcg_at_10": (np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0), ones),
    }


def _numbered(texts: Iterable[str]) -> list[int]:
    """A number for each text, the same for equal ones."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(text, len(numbers)) for text in texts]
