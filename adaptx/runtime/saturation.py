"""How much of an adapter's activations int8 cuts off, measured on the bundle's probe texts.

An int8 graph was calibrated with the adapters that it was exported with. One that is added later
may drive activations beyond the range that they had.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adaptx.runtime.bank import Place
from adaptx.runtime.layout import CHECK, IDS, INPUT_IDS, MASK, SATURATION, BundleFacts
from adaptx.runtime.sessions import open_session
from adaptx.runtime.verify import read_probe

LEAST_BOUND, TIMES = 0.002, 4.0  # too much: so many times what the bundle's own adapters have
ROWS = 4  # of the probe: the first ones of a middle length


class Check:
    """The session of check.onnx, opened when it is first needed, and closed again."""

    def __init__(self, folder: Path, facts: BundleFacts):
        self.folder = folder
        self.bound = max(LEAST_BOUND, TIMES * facts.saturation)

    def measure(self, place: Place) -> float:
        """The largest share of values beyond u8's range that any site has, of all its tokens."""
        # Weights stay where they are mapped: the graph runs a few rows once.
        session = open_session(self.folder / CHECK, 1, arena=False, prepack=False)
        probe = read_probe(self.folder)
        order = sorted(range(len(probe.ids)), key=lambda i: len(probe.ids[i]))
        middle = len(order) // 2
        found = 0.0
        for i in order[middle : middle + ROWS]:
            feeds = {INPUT_IDS: np.array([probe.ids[i]], np.int64)}
            feeds[MASK] = np.ones_like(feeds[INPUT_IDS])
            if place.chunk.arrays:
                feeds[IDS] = np.array([[place.slot]], np.int64)
                feeds |= place.chunk.arrays
            (share,) = session.run([SATURATION], feeds)
            found = max(found, float(share))
        return found
