"""The live bank: adapters in memory that onnxruntime reads where it lies.

Chunks of slots, each for ranks up to its own, so that one adapter of rank 64 widens nobody else's
products. An adapter is written into a free slot, which no run reads, and the next run sees it:
nothing is copied, rebuilt or locked. A chunk's memory is taken as its slots are filled.
Dimensions: N slots, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptx.errors import FolderError, choices
from adaptx.runtime.layout import BankSpec
from adaptx.runtime.rows import bank_rows

LEAST_RANK = 4


class Chunk:
    """The arrays of N slots, `[N + 1, R of each part, width]` by bank; slot 0 holds nothing."""

    def __init__(self, specs: Sequence[BankSpec], dtype: str, rank: int, slots: int):
        import onnxruntime

        self.rank = rank
        self.free = list(range(slots, 0, -1))
        self.arrays = {
            spec.name: np.zeros((slots + 1, len(spec.parts) * rank, spec.width), dtype)
            for spec in specs
        }
        self.values: dict[str, Any] = {  # onnxruntime reads the arrays themselves
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array)
            for name, array in self.arrays.items()
        }

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return sum(array[0].nbytes for array in self.arrays.values())

    def slot_values(self, slot: int) -> dict[str, Any]:
        """A slot of each bank, `[R of each part, width]`: as it lies there, not a copy."""
        import onnxruntime

        return {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array[slot])
            for name, array in self.arrays.items()
        }


@dataclass(frozen=True)
class Place:
    """Where an adapter lies."""

    chunk: Chunk
    slot: int


class LiveBank:
    """Chunks that grow in number. Not safe by itself: its owner holds a lock (see Pool)."""

    def __init__(self, specs: Sequence[BankSpec], dtype: str, slots: int):
        self.specs, self.dtype, self.slots = tuple(specs), dtype, slots
        self.chunks: list[Chunk] = []
        self.nothing = Chunk(specs, dtype, LEAST_RANK, 0)  # for rows without an adapter

    def rows(
        self,
        sites: Mapping[str, tuple[np.ndarray, np.ndarray]],
        scales: Mapping[str, float],
        rank: int,
    ) -> dict[str, np.ndarray]:
        """What a slot holds of an adapter (see bank_rows); FolderError where it doesn't fit."""
        found = bank_rows(self.specs, sites, scales, _width(rank))
        with np.errstate(over="ignore"):
            found = {name: rows.astype(self.dtype) for name, rows in found.items()}
        for spec in self.specs:
            if not np.isfinite(found[spec.name]).all():
                raise FolderError(
                    f"The adapter has values at {choices(spec.sites)} that are beyond "
                    f"{self.dtype}, which the bank is of: export the bundle again with --bank "
                    f"fp32, or train the adapter with a smaller learning rate."
                )
        return found

    def take(self, rank: int) -> Place:
        """A free slot for an adapter of a rank, in a new chunk where there is none."""
        width = _width(rank)
        for chunk in self.chunks:
            if chunk.rank == width and chunk.free:
                return Place(chunk, chunk.free.pop())
        self.chunks.append(Chunk(self.specs, self.dtype, width, self.slots))
        return Place(self.chunks[-1], self.chunks[-1].free.pop())

    def write(self, place: Place, rows: Mapping[str, np.ndarray]) -> None:
        """Fill a slot that was taken."""
        for name, array in rows.items():
            place.chunk.arrays[name][place.slot] = array

    def give_back(self, place: Place) -> None:
        """Free a slot that no run reads any more."""
        place.chunk.free.append(place.slot)


def _width(rank: int) -> int:
    """The rank of the chunks that adapters of a rank go into."""
    return max(LEAST_RANK, 1 << (rank - 1).bit_length())
