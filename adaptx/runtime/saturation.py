"""How much of an adapter's activations int8 cuts off, measured on the bundle's probe texts.

An int8 graph was calibrated with the adapters that it was exported with. One that is added later
may drive activations beyond the range that they had.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np

from adaptx.errors import FolderError
from adaptx.runtime.bank import Place
from adaptx.runtime.layout import CHECK, IDS, INPUT_IDS, MASK, MEAN, SATURATION, BundleFacts
from adaptx.runtime.sessions import Graphs
from adaptx.runtime.verify import read_probe

LEAST_BOUND, TIMES = 0.002, 4.0  # too much: so many times what the bundle's own adapters have
ROWS = 4  # of the probe, of about the middle length


class Check:
    """The session of check.onnx, opened when it is first needed."""

    def __init__(self, graphs: Graphs, facts: BundleFacts):
        self.graphs = graphs
        self.bound = max(LEAST_BOUND, TIMES * facts.saturation)
        self._session: Any = None
        self._one_at_a_time = threading.Lock()

    def measure(self, name: str, place: Place) -> float:
        """The largest share of values beyond u8's range that any site has, of all its tokens.

        Raises FolderError for an adapter whose answers wouldn't be numbers.
        """
        with self._one_at_a_time:
            if self._session is None:
                rows = sorted(read_probe(self.graphs.folder).ids, key=len)
                middle = rows[len(rows) // 2 :][:ROWS] or rows
                length = len(middle[0])  # cut alike, so that no padding is counted
                self._ids = np.array([row[:length] for row in middle], np.int64)
                # The weights stay where they are mapped: packing them would take as much again.
                self._session = self.graphs.open(CHECK, 1, arena=False, prepack=False)
            feeds = {INPUT_IDS: self._ids, MASK: np.ones_like(self._ids)}
            if place.chunk.arrays:
                feeds[IDS] = np.array([[place.slot]], np.int64)
                feeds |= place.chunk.arrays
            share, mean = self._session.run([SATURATION, MEAN], feeds)
        if not np.isfinite(mean).all():
            raise FolderError(
                f"Adapter {name!r} makes the encoder's states infinite on the probe texts: its "
                f"weights are damaged, or its training went wrong. Train it again."
            )
        return float(share)

    def warn(self, name: str, share: float) -> None:
        """Warn where int8 cuts off too much."""
        if share > self.bound:
            warnings.warn(
                f"Adapter {name!r} drives {share:.1%} of the values at a site beyond the range of "
                f"int8 that this bundle was calibrated for: its answers may differ from fp32. "
                f"Export the bundle again with it among the adapters.",
                stacklevel=4,
            )
