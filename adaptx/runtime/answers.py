"""What a runtime says: the answer to a text, and what is known of an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Answer:
    """The answer to one text.

    adapter     the adapter's name, or None
    prediction  what the adapter's task answers: a label with its scores, entities …
    vector      the pooled state, fp32 `[H]`, where it has no task, or there is no adapter
    truncated   tokens at the end of the text, or of the question before a passage, that were not
                read, as it is too long
    """

    adapter: str | None
    prediction: Any
    vector: np.ndarray | None
    truncated: int = 0

    @property
    def value(self) -> Any:
        """The prediction, or else the vector."""
        return self.vector if self.prediction is None else self.prediction


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter that a runtime knows.

    resident    whether it is in the bank now
    saturation  the largest share of values, at any site, that int8 cut off on the probe texts; None
                where it wasn't measured
    """

    name: str
    language: str | None
    task: str | None
    labels: tuple[str, ...]
    rank: int | None
    resident: bool
    pinned: bool
    saturation: float | None
