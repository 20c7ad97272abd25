"""Which rows of which source each step takes, where several sources train together.

The share p_i of source i, of n_i rows:

    proportional   n_i
    uniform        1
    temperature    n_i^(1 / T)                       (Devlin et al.'s mBERT; Conneau et al. 2020,
                                                     arXiv 1911.02116, with alpha = 1 / T)
    unimax         alike, but none is read more than `passes` times
                                                     (Chung et al. 2023, arXiv 2304.09151)

each over the sum of all. Row g of a training is of the source on whose piece of [0, 1) the point
g · 0.618… mod 1 lies (the golden ratio's sequence): any run of rows has each source in its share,
give or take a row, and where a training stands is known from g alone.

Rows that are contrasted with each other (`Task.contrasts`) teach nothing alone in a micro-batch.
Where a source has such, the points are those of blocks: the places of two rows, of three at an odd
end, that one process has in one micro-batch. A block is all of such a source, in its share, or it
is of the others, whose rows have points of their own among themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from adaptx.errors import OptionError, choices
from adaptx.training.plan import Step

SAMPLINGS = ("proportional", "uniform", "temperature", "unimax")
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Sampling:
    """How often each source is read.

    sampling     one of SAMPLINGS
    temperature  1 is proportional; the higher, the more alike; for "temperature" alone
    passes       how often a source is read at most, for "unimax" alone; None: twice the epochs
    """

    sampling: str = "temperature"
    temperature: float = 2.0
    passes: float | None = None

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise OptionError(f"sampling={self.sampling!r} is none of {choices(SAMPLINGS)}.")
        for name in ("temperature", "passes"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 < value < 1e9):
                raise OptionError(f"{name}={value!r} must be a number above 0.")

    def shares(self, sizes: Sequence[int], epochs: int) -> np.ndarray:
        """Each source's share of all rows, fp64, their sum 1; `epochs` of so many rows as all."""
        rows = np.array(sizes, np.float64)
        if self.sampling == "unimax":
            found = _unimax(rows, epochs * rows.sum(), self.passes or 2 * epochs)
        else:
            power = {"proportional": 1.0, "uniform": 0.0, "temperature": 1 / self.temperature}
            found = (rows / rows.max()) ** power[self.sampling]
        return found / found.sum()


def _unimax(rows: np.ndarray, budget: float, passes: float) -> np.ndarray:
    """Rows to read of each source: the budget in equal parts, none above its `passes`."""
    found = np.zeros_like(rows)
    for left, place in zip(range(len(rows), 0, -1), np.argsort(rows, kind="stable"), strict=True):
        found[place] = min((budget - found.sum()) / left, passes * rows[place])
    return found


@dataclass(frozen=True)
class MixedPlan:
    """Cuts rows of several sources, numbered one source after another, into steps.

    As `adaptx.training.plan.Plan`, but that an epoch is as many rows as the sources have together,
    in their shares: a source may be read twice, or not to its end. Each is shuffled anew
    whenever it was read through. `contrasts` says of which sources no row may be alone.
    """

    sizes: Sequence[int]
    shares: np.ndarray
    batch_size: int
    accumulate: int = 1
    processes: int = 1
    process: int = 0
    seed: int = 0
    contrasts: Sequence[bool] = ()

    def __post_init__(self) -> None:
        if any(self.contrasts) and (least := min(map(len, self._parts()))) < 2:
            raise OptionError(
                f"batch_size={self.batch_size}, accumulate={self.accumulate} and {self.processes} "
                f"processes leave {least} rows of a micro-batch to one: retrieval, whose pairs are "
                f"each other's wrong answers, needs 2. Take a larger batch, or accumulate less."
            )

    def __len__(self) -> int:
        return -(-sum(self.sizes) // self.batch_size)

    def steps(self, epoch: int) -> Iterator[Step]:
        """The steps of an epoch."""
        mine = self._parts()[self.process :: self.processes]
        for rows in self._rows(epoch).reshape(-1, self.batch_size):
            yield Step(len(rows), tuple(rows[part] for part in mine), rows)

    def _parts(self) -> list[np.ndarray]:
        """The places in a step that each process has of each micro-batch, one after another."""
        micro = np.array_split(np.arange(self.batch_size), self.accumulate)
        return [part[i :: self.processes] for part in micro for i in range(self.processes)]

    def _rows(self, epoch: int) -> np.ndarray:
        """Which row each of an epoch's places has, int64 `[rows]`."""
        many = len(self) * self.batch_size
        start = (epoch - 1) * many
        sources = self._sources(start + many)
        before = np.bincount(sources[:start], minlength=len(self.sizes))
        found = np.empty(many, np.int64)
        for source, size in enumerate(self.sizes):
            places = np.flatnonzero(sources[start:] == source)
            passes, at = np.divmod(before[source] + np.arange(len(places)), size)
            for number in np.unique(passes):
                order = np.random.default_rng([self.seed, source, number]).permutation(size)
                now = passes == number
                found[places[now]] = sum(self.sizes[:source]) + order[at[now]]
        return found

    def _sources(self, rows: int) -> np.ndarray:
        """The source of each of the first rows of a training."""
        if not any(self.contrasts):
            return _drawn(self.shares, rows)
        step = self._blocks()
        blocks = step.max() + 1
        drawn = _drawn(self.shares, rows // self.batch_size * blocks)
        found: np.ndarray = drawn.reshape(-1, blocks)[:, step].ravel()
        others = np.flatnonzero(~np.array(self.contrasts))
        if len(others):
            alone = np.isin(found, others)
            shares = self.shares[others] / self.shares[others].sum()
            found[alone] = others[_drawn(shares, int(alone.sum()))]
        return found

    def _blocks(self) -> np.ndarray:
        """The number of the block that each place of a step is in, int64 `[batch_size]`."""
        found, count = np.empty(self.batch_size, np.int64), 0
        for part in self._parts():
            many = len(part) // 2
            found[part] = count + np.minimum(np.arange(len(part)) // 2, many - 1)
            count += many
        return found


def _drawn(shares: np.ndarray, many: int) -> np.ndarray:
    """The first points of the golden ratio's sequence, as the pieces that they lie on."""
    points = (0.5 + np.arange(many) * GOLDEN) % 1
    return np.searchsorted(np.cumsum(shares)[:-1], points, side="right")
