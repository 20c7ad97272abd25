"""Which rows each process takes at each step: the same global batches on any number of processes.

An epoch is one shuffle of all rows, cut into global batches; within WINDOW batches, rows of like
length go together, because padding costs as much as text. A global batch is cut into `accumulate`
micro-batches, and each of those among the processes. So the same seed and batch size
mean the same training on 1 or 8 GPUs, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

WINDOW = 32  # batches among which rows are sorted by length


@dataclass(frozen=True)
class Step:
    """One optimizer step: the rows of the global batch, and this process's micro-batches.

    A micro-batch without rows for this process is empty: it must still take part in the backward
    pass, with weight 0 (see `adaptx.training.train`).
    """

    rows: int
    micro_batches: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Plan:
    """Cuts rows of `lengths` tokens, int64 `[rows]`, into steps for `process` of `processes`."""

    lengths: np.ndarray
    batch_size: int
    accumulate: int = 1
    processes: int = 1
    process: int = 0
    seed: int = 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def steps(self, epoch: int) -> Iterator[Step]:
        """The steps of an epoch; its shuffle depends on the seed and the epoch alone."""
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.lengths))
        batches: list[np.ndarray] = []
        for start in range(0, len(order), WINDOW * self.batch_size):
            window = order[start : start + WINDOW * self.batch_size]
            window = window[np.argsort(self.lengths[window], kind="stable")]
            batches += np.split(window, range(self.batch_size, len(window), self.batch_size))
        for i in random.permutation(len(batches)):
            batch = batches[i]
            micro = np.array_split(batch, self.accumulate)
            yield Step(len(batch), tuple(rows[self.process :: self.processes] for rows in micro))
