"""Which rows each process takes at each step: the same global batches on any number of processes.

An epoch is one shuffle of all rows, cut into global batches; within WINDOW batches, rows of like
length go together, because padding costs as much as text. A global batch is cut into `accumulate`
micro-batches, or as many more as keep each within `micro_tokens`, and each of those among the
processes. So the same seed and batch size mean the same training on 1 or 8 GPUs, up to rounding;
but for retrieval, whose rows learn from the others of their micro-batch.
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
    all_rows: np.ndarray  # of the global batch, whoever holds them


@dataclass(frozen=True)
class Plan:
    """Cuts rows into steps for `process` of `processes`.

    `lengths` are the rows' tokens, int64 `[rows]`; without them, rows of any length go together,
    and `micro_tokens` can't be kept. A row that is longer than that stands alone.
    """

    rows: int
    batch_size: int
    accumulate: int = 1
    processes: int = 1
    process: int = 0
    seed: int = 0
    lengths: np.ndarray | None = None
    micro_tokens: int | None = None

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def steps(self, epoch: int) -> Iterator[Step]:
        """The steps of an epoch; its shuffle depends on the seed and the epoch alone."""
        random = np.random.default_rng([self.seed, epoch])
        order, size = random.permutation(self.rows), self.batch_size
        for start in range(0, self.rows, WINDOW * size):
            window = order[start : start + WINDOW * size]
            if self.lengths is not None:
                window = window[np.argsort(self.lengths[window], kind="stable")]
            batches = np.split(window, range(size, len(window), size))
            for i in random.permutation(len(batches)):
                micro = self._micro_batches(batches[i])
                mine = tuple(rows[self.process :: self.processes] for rows in micro)
                yield Step(len(batches[i]), mine, batches[i])

    def _micro_batches(self, batch: np.ndarray) -> list[np.ndarray]:
        parts = self.accumulate
        micro = np.array_split(batch, parts)
        if self.micro_tokens is None or self.lengths is None:
            return micro
        least = self.lengths[batch].sum() / (self.micro_tokens * self.processes)
        while parts < len(batch) and any(self._tokens(rows) > self.micro_tokens for rows in micro):
            parts = min(max(parts + 1, int(least)), len(batch))
            micro = np.array_split(batch, parts)
        return micro

    def _tokens(self, rows: np.ndarray) -> int:
        """Tokens with padding of the process that has most of a micro-batch."""
        assert self.lengths is not None
        each = [self.lengths[rows[process :: self.processes]] for process in range(self.processes)]
        return max(int(its.max()) * len(its) for its in each if len(its))
