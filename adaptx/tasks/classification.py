"""Single-label classification of a text: softmax over a linear head on the pooled states.

logits_BL = pooled_BH W_LH^T + b_L        loss = cross entropy
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from adaptx.data.large import IndexedExamples
from adaptx.data.records import Example
from adaptx.errors import DataError, OptionError, choices
from adaptx.tasks.base import Prediction

if TYPE_CHECKING:
    from torch import Tensor

POOLINGS = ("mean", "cls")


@dataclass(frozen=True)
class Classification:
    """One of `labels` for each text.

    Without labels, `fit` takes those of the training data, sorted. `pooling` makes one vector of
    the token states: "mean" over the tokens that aren't padding, or "cls", the first token's.
    """

    labels: tuple[str, ...] = ()
    pooling: str = "mean"

    kind = "classification"

    def __post_init__(self) -> None:
        if isinstance(cast(object, self.labels), str):
            raise OptionError(f"labels={self.labels!r} must be a list of names, not one text.")
        object.__setattr__(self, "labels", tuple(self.labels))
        if not all(isinstance(label, str) and label for label in self.labels):
            raise OptionError(f"labels={list(self.labels)} must be names that aren't empty.")
        if len(set(self.labels)) != len(self.labels):
            raise OptionError(f"A label stands twice in labels={list(self.labels)}.")
        if self.pooling not in POOLINGS:
            raise OptionError(f"pooling={self.pooling!r} is none of {choices(POOLINGS)}.")

    @property
    def outputs(self) -> int:
        """How many numbers the head gives for a row."""
        return len(self.labels)

    def fit(self, train: Sequence[Example], dev: Sequence[Example] = ()) -> Classification:
        """The task with its labels, after the data has been checked against them.

        Raises DataError for an unknown label (file, line, found, allowed), for one class only,
        and for a label of dev that train lacks. A file larger than memory isn't read: its labels
        are the task's or dev's, and a bad row raises its error when its turn comes.
        """
        if isinstance(train, IndexedExamples):
            if not self.labels and not dev:
                raise OptionError(
                    f"{train.path} is too large to be read for its labels: name them with --labels "
                    f"(Classification(labels=[…])), or give a dev set that has them all."
                )
            if not self.labels:
                return self.fit(dev)
            self.targets(dev)
            return self
        found = sorted({example.label for example in train if example.label is not None})
        task = self if self.labels else Classification(tuple(found), self.pooling)
        if not train:
            raise DataError("there are no training examples.")
        task.targets(train)
        if len(found) < 2:
            raise DataError(
                f"there is one class only, {found[0]!r}: classification needs at least two labels "
                f"in the training data.",
                train[0].path or None,
            )
        if self.labels:
            task.targets(dev)
        for example in dev:
            if example.label not in found:
                raise example.error(
                    f"the label {example.label!r} stands in dev but not in train (which has "
                    f"{choices(found)}): it can't be learnt. Add rows of it to train, or take it "
                    f"out of dev."
                )
        return task

    def targets(self, examples: Sequence[Example]) -> np.ndarray:
        """int64 `[rows]`: the index of each example's label; DataError for an unknown one."""
        index = {label: i for i, label in enumerate(self.labels)}
        for example in examples:
            if example.label not in index:
                raise example.error(
                    f"unknown label {example.label!r}; allowed: {choices(self.labels)}."
                )
        return np.array([index[example.label or ""] for example in examples], dtype=np.int64)

    def losses(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross entropy of each row: logits `[B, labels]`, targets int64 `[B]` -> fp32 `[B]`.

        `smoothing` is the share of a target that all labels have alike (Szegedy et al. 2016,
        arXiv 1512.00567).
        """
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)

    def decode(self, logits: np.ndarray) -> list[Prediction]:
        """A Prediction for each row of logits `[B, labels]`."""
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        return [
            Prediction(
                label=self.labels[int(row.argmax())],
                score=float(row.max()),
                scores={label: float(p) for label, p in zip(self.labels, row, strict=True)},
            )
            for row in probabilities
        ]

    def to_json(self) -> dict[str, Any]:
        """What `task_from_json` rebuilds the task from."""
        return {"kind": self.kind, "labels": list(self.labels), "pooling": self.pooling}
