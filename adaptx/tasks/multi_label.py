"""Several labels for a text, or none: a sigmoid for each on a linear head on the pooled states.

logits_BL = pooled_BH W_LH^T + b_L        loss = binary cross entropy, its mean over the labels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptx.data.records import Labelled
from adaptx.data.windows import Input, Window
from adaptx.errors import DataError, OptionError, choices
from adaptx.tasks.base import Task, checked_labels
from adaptx.tasks.target import Reading, Target, index_of

if TYPE_CHECKING:
    from torch import Tensor

    from adaptx.data.swaps import Swapper


@dataclass(frozen=True)
class Labels:
    """The answer to one row: the labels above the threshold, and every label's probability."""

    labels: tuple[str, ...]
    scores: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {"labels": list(self.labels), "scores": self.scores}

    def __str__(self) -> str:
        return ", ".join(f"{label} {self.scores[label]:.3f}" for label in self.labels) or "no label"


@dataclass(frozen=True)
class MultiLabel(Task):
    """Those of `labels` that a text has; `threshold` is the probability from which one is given.

    Without labels, `fit` takes those of the training data, sorted.
    """

    labels: tuple[str, ...] = ()
    pooling: str = "mean"
    threshold: float = 0.5

    kind = "multi-label"
    hub = "text-classification"
    record = Labelled
    problem = "multi_label_classification"
    chooses = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", checked_labels(self.labels))
        self.check_pooling()
        if not isinstance(self.threshold, (int, float)) or not 0 < self.threshold < 1:
            raise OptionError(f"threshold={self.threshold!r} must be between 0 and 1.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """F1 over all labels together, its mean over labels, and rows with all labels right."""
        return "micro_f1", "macro_f1", "accuracy"

    @property
    def reads(self) -> str:
        """What it does, in words."""
        return f"It reads a text and says which of {len(self.labels)} labels it has"

    def fit(self, train: Sequence[Labelled], dev: Sequence[Labelled] = ()) -> MultiLabel:
        """The task with its labels; DataError for an unknown one, or one of dev's alone."""
        if not train:
            raise DataError("there are no training examples.")
        found = sorted({label for record in train for label in record.names})
        task = self if self.labels else replace(self, labels=tuple(found))
        task.check(train)
        task.check(dev)
        return task

    def check(self, records: Sequence[Labelled]) -> None:
        """Raise DataError for a label that isn't one of the task's."""
        super().check(records)
        known = set(self.labels)
        for record in records:
            if known and (unknown := [name for name in record.names if name not in known]):
                raise record.error(
                    f"unknown label {unknown[0]!r}; allowed: {choices(self.labels)}."
                )

    def targets(
        self, records: Sequence[Labelled], windows: Sequence[Sequence[Window]] = ()
    ) -> np.ndarray:
        """fp32 `[rows, L]`: 1 where a row has the label."""
        return np.array(
            [[float(label in record.names) for label in self.labels] for record in records],
            np.float32,
        )

    def losses(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Logits `[B, L]`, targets fp32 `[B, L]` -> fp32 `[B]`; smoothing pulls targets to 1/2."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        aims = targets * (1 - smoothing) + smoothing / 2
        return binary_cross_entropy_with_logits(outputs.float(), aims, reduction="none").mean(1)

    def answer(
        self, one: Input, windows: Sequence[Window], outputs: Sequence[np.ndarray]
    ) -> Labels:
        """The labels whose probability is at least the threshold."""
        p_L = 1 / (1 + np.exp(-outputs[0].astype(np.float64)))
        scores = {label: float(p) for label, p in zip(self.labels, p_L, strict=True)}
        return Labels(tuple(k for k, p in scores.items() if p >= self.threshold), scores)

    def target(
        self, one: Any, answer: Labels, label: str | None = None, word: str | None = None
    ) -> Target:
        """The log-odds of a label, of the likeliest."""
        if label is None:
            label = max(answer.scores, key=lambda label: answer.scores[label])
        return Target(label, index=index_of(self.labels, label))

    def reading(
        self, target: Target, windows: Sequence[Window], outputs: Sequence[np.ndarray]
    ) -> Reading:
        """The label's output itself."""
        return Reading(0, lambda out_BL: out_BL[:, target.index].double())

    def change(
        self, before: Labels, after: Labels, swap: Swapper
    ) -> tuple[bool | None, float | None]:
        """Whether the labels are others; the change of the probability that moves most."""
        moves = [after.scores[label] - before.scores[label] for label in self.labels]
        return set(before.labels) != set(after.labels), max(moves, key=abs)
