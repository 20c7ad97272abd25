"""Rows of token ids through a bundle's sessions, in micro-batches: what each row's head reads.

H hidden width, S tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from adaptx.data.encode import TextEncoder
from adaptx.runtime.bank import Chunk, Place
from adaptx.runtime.pool import Resident
from adaptx.runtime.sessions import MicroBatch, Sessions
from adaptx.tasks.base import TOKENS


class Forward:
    """The encoder of a bundle with each row's adapter; `nothing` is for rows without one."""

    def __init__(self, text: TextEncoder, sessions: Sessions, nothing: Chunk):
        self.text, self.sessions, self.nothing = text, sessions, nothing

    def states(
        self,
        ids: Sequence[Sequence[int]],
        rows: Sequence[Resident | None],
        *,
        tokens: bool = True,
        then: Callable[[int, np.ndarray], np.ndarray] = lambda row, state: state,
    ) -> list[np.ndarray]:
        """What each row's head reads, fp32: a vector `[H]`, or all its tokens' `[S, H]`.

        Without `tokens` those have their mean instead. `then(row, state)` is what is kept of each:
        the states of all rows at once may be more than memory holds.
        """
        poolings = [row.loaded.pooling if row else "mean" for row in rows]
        if not tokens:
            poolings = ["mean" if pooling == TOKENS else pooling for pooling in poolings]
        if len(ids) == 1 and len(ids[0]) > 1:  # nothing to sort, pad or share out: 0.1 ms less
            return [then(0, self._lone(ids[0], rows[0], poolings[0]))]
        places = [row.place if row else None for row in rows]
        fallback = next((place.chunk for place in places if place), self.nothing)
        groups: dict[int, list[int]] = {}
        chunks = {}
        for i, place in enumerate(places):  # a row without an adapter joins any chunk
            chunk = place.chunk if place else fallback
            chunks[id(chunk)] = chunk
            groups.setdefault(id(chunk), []).append(i)
        batches, members = [], []
        for key, group in groups.items():
            order = sorted(group, key=lambda i: -len(ids[i]))
            start = 0
            while start < len(order):
                size = self.sessions.rows_at_once(len(ids), len(ids[order[start]]))
                taken = order[start : start + size]
                start += size
                # A product with one token alone sums in another order than one with more.
                batch = self.text.batch(ids, taken, least=2)
                slots = [place.slot if (place := places[i]) else 0 for i in taken]
                hidden_too = any(poolings[i] != "mean" for i in taken)
                batches.append(
                    MicroBatch(
                        batch.input_ids,
                        batch.attention_mask,
                        np.array(slots, np.int64),
                        chunks[key],
                        hidden_too,
                    )
                )
                members.append(taken)
        found = [np.empty(0, np.float32)] * len(ids)
        for taken, (mean, hidden) in zip(members, self.sessions.run(batches), strict=True):
            for at, i in enumerate(taken):
                found[i] = then(i, _taken(poolings[i], mean, hidden, at, len(ids[i])))
        return found

    def _lone(self, ids: Sequence[int], row: Resident | None, pooling: str) -> np.ndarray:
        """A single row's states, as in `states`."""
        place = (row.place if row else None) or Place(self.nothing, 0)
        ids_1S = np.array([ids], np.int64)
        slot = np.array([place.slot], np.int64)
        batch = MicroBatch(ids_1S, np.ones_like(ids_1S), slot, place.chunk, pooling != "mean")
        ((mean, hidden),) = self.sessions.run([batch])
        return _taken(pooling, mean, hidden, 0, len(ids))


def _taken(
    pooling: str, mean_BH: np.ndarray, hidden_BSH: np.ndarray | None, row: int, tokens: int
) -> np.ndarray:
    """A row's states by its pooling, padding taken away."""
    if pooling == "mean" or hidden_BSH is None:
        return mean_BH[row]
    return hidden_BSH[row, 0].copy() if pooling == "cls" else hidden_BSH[row, :tokens]
