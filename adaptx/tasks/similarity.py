"""How near two texts are, as a number: regression on the pooled states of both, read together.

score = mean + scale (w . pooled + b)        loss = the squared error of (score - mean) / scale
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptx.data.records import Pair
from adaptx.data.windows import Input, Window
from adaptx.errors import DataError, OptionError
from adaptx.tasks.base import Task
from adaptx.tasks.target import Reading, Target, no_label

if TYPE_CHECKING:
    from torch import Tensor

    from adaptx.data.swaps import Swapper


@dataclass(frozen=True)
class Score:
    """The answer to a pair: a number on the training data's own scale."""

    score: float

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.score:.3f}"


@dataclass(frozen=True)
class Similarity(Task):
    """A number for two texts. `fit` takes `mean` and `scale` of the training data's scores."""

    mean: float = 0.0
    scale: float = 1.0
    labels: tuple[str, ...] = ("score",)
    pooling: str = "mean"

    kind = "similarity"
    hub = "text-classification"
    record = Pair
    problem = "regression"
    chooses = False
    smooths = False
    two_texts = True
    needs = "Two texts are needed, as (text, other) or with --passage,"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        self.check_pooling()
        if len(self.labels) != 1:
            raise OptionError(f"labels={list(self.labels)}: similarity has one, its score's name.")
        for name in ("mean", "scale"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise OptionError(f"{name}={value!r} must be a number.")
        if self.scale <= 0:
            raise OptionError(f"scale={self.scale!r} must be above 0.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Correlations of ranks and of values."""
        return "spearman", "pearson"

    @property
    def reads(self) -> str:
        """What it does, in words."""
        return "It reads two texts and says in a number how near they are"

    def fit(self, train: Sequence[Pair], dev: Sequence[Pair] = ()) -> Similarity:
        """The task with its scale; DataError for a score that is no number, or all alike."""
        if not train:
            raise DataError("there are no training examples.")
        self.check(dev)
        values = _values(train)
        if values.std() == 0:
            raise DataError(f"every score is {values[0]:g}.", train[0].path or None)
        return replace(self, mean=float(values.mean()), scale=float(values.std()))

    def check(self, records: Sequence[Pair]) -> None:
        """Raise DataError for a score that is no number."""
        super().check(records)
        _values(records)

    def inputs(self, records: Sequence[Pair]) -> list[Input]:
        """Both texts of each pair."""
        return [(record.text, record.other) for record in records]

    def targets(
        self, records: Sequence[Pair], windows: Sequence[Sequence[Window]] = ()
    ) -> np.ndarray:
        """fp32 `[rows]`: (score - mean) / scale."""
        found: np.ndarray = ((_values(records) - self.mean) / self.scale).astype(np.float32)
        return found

    def losses(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Outputs `[B, 1]`, targets fp32 `[B]` -> fp32 `[B]`; there is nothing to smooth."""
        return (outputs.float()[:, 0] - targets) ** 2

    def answer(self, one: Input, windows: Sequence[Window], outputs: Sequence[np.ndarray]) -> Score:
        """The score."""
        return Score(self.mean + self.scale * float(outputs[0][0]))

    @property
    def scale_of_outputs(self) -> tuple[float, float]:
        """Those of the training data's scores."""
        return self.mean, self.scale

    def target(
        self, one: Any, answer: Score, label: str | None = None, word: str | None = None
    ) -> Target:
        """The score."""
        no_label(label, "a number")
        return Target(self.labels[0], "score")

    def reading(
        self, target: Target, windows: Sequence[Window], outputs: Sequence[np.ndarray]
    ) -> Reading:
        """The output, on the data's scale."""
        return Reading(0, lambda out_BL: self.mean + self.scale * out_BL[:, 0].double())

    def change(
        self, before: Score, after: Score, swap: Swapper
    ) -> tuple[bool | None, float | None]:
        """The change of the score, which any swap moves."""
        return None, after.score - before.score


def _values(records: Sequence[Pair]) -> np.ndarray:
    found = np.empty(len(records))
    for i, record in enumerate(records):
        try:
            found[i] = float(record.label or "")
        except ValueError:
            found[i] = math.nan
        if not math.isfinite(found[i]):
            raise record.error(f"the score is {record.label!r}, and a number is needed.")
    return found
