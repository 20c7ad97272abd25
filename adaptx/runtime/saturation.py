"""How much of an adapter's activations int8 cuts off, measured on the bundle's probe texts.

An int8 graph was calibrated with the adapters that it was exported with. One that is added later
may drive activations beyond the range that they had.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adaptx.runtime.bank import Place
from adaptx.runtime.layout import CHECK, IDS, INPUT_IDS, MASK, SATURATION, BundleFacts
from adaptx.runtime.sessions import open_session
from adaptx.runtime.verify import read_probe

LEAST_BOUND, TIMES = 0.002, 4.0  # too much: so many times what the bundle's own adapters have
ROWS = 4  # of the probe, of about the middle length


class Check:
    """The session of check.onnx, opened when it is first needed."""

    def __init__(self, folder: Path, facts: BundleFacts):
        self.folder = folder
        self.bound = max(LEAST_BOUND, TIMES * facts.saturation)
        self._session: Any = None

    def measure(self, place: Place) -> float:
        """The largest share of values beyond u8's range that any site has, of all its tokens."""
        if self._session is None:
            # The weights stay where they are mapped: packing them would take as much again.
            self._session = open_session(self.folder / CHECK, 1, arena=False, prepack=False)
            rows = sorted(read_probe(self.folder).ids, key=len)
            middle = rows[len(rows) // 2 :][:ROWS] or rows
            length = len(middle[0])  # cut alike, so that no padding is counted
            self._ids = np.array([row[:length] for row in middle], np.int64)
        feeds = {INPUT_IDS: self._ids, MASK: np.ones_like(self._ids)}
        if place.chunk.arrays:
            feeds[IDS] = np.array([[place.slot]], np.int64)
            feeds |= place.chunk.arrays
        (share,) = self._session.run([SATURATION], feeds)
        return float(share)
