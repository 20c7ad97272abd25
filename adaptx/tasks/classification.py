"""Single-label classification of a text: softmax over a linear head on the pooled states.

logits_BL = pooled_BH W_LH^T + b_L        loss = cross entropy
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adaptx.data.large import IndexedExamples
from adaptx.data.records import Example
from adaptx.data.windows import Input, Window
from adaptx.errors import DataError, OptionError, choices
from adaptx.tasks.base import Prediction, Task, checked_labels, softmax
from adaptx.tasks.target import Reading, Target, index_of, log_odds

if TYPE_CHECKING:
    from torch import Tensor

    from adaptx.data.swaps import Swapper

METRICS = ("accuracy", "macro_f1", "weighted_f1")


@dataclass(frozen=True)
class Classification(Task):
    """One of `labels` for each text.

    Without labels, `fit` takes those of the training data, sorted. `pooling` makes one vector of
    the token states: "mean" over the tokens that aren't padding, or "cls", the first token's.
    """

    labels: tuple[str, ...] = ()
    pooling: str = "mean"

    kind = "classification"
    hub = "text-classification"
    record: ClassVar[type] = Example
    problem = "single_label_classification"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", checked_labels(self.labels))
        self.check_pooling()

    @property
    def reads(self) -> str:
        """What it does, in words."""
        return f"It reads a text and answers with one of {len(self.labels)} labels"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Accuracy, and F1 averaged over labels, plainly and by their share."""
        return METRICS

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
        task = self if self.labels else replace(self, labels=tuple(found))
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

    def check(self, records: Sequence[Example]) -> None:
        """Raise DataError for a label that isn't one of the task's."""
        super().check(records)
        if self.labels:
            self.targets(records)

    def targets(
        self, records: Sequence[Example], windows: Sequence[Sequence[Window]] = ()
    ) -> np.ndarray:
        """int64 `[rows]`: the index of each example's label; DataError for an unknown one."""
        index = {label: i for i, label in enumerate(self.labels)}
        for example in records:
            if example.label not in index:
                raise example.error(
                    f"unknown label {example.label!r}; allowed: {choices(self.labels)}."
                )
        return np.array([index[example.label or ""] for example in records], dtype=np.int64)

    def losses(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross entropy of each row: logits `[B, labels]`, targets int64 `[B]` -> fp32 `[B]`.

        `smoothing` is the share of a target that all labels have alike (Szegedy et al. 2016,
        arXiv 1512.00567).
        """
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)

    def decode(self, logits: np.ndarray) -> list[Prediction]:
        """A Prediction for each row of logits `[B, labels]`."""
        return [
            Prediction(
                label=self.labels[int(row.argmax())],
                score=float(row.max()),
                scores={label: float(p) for label, p in zip(self.labels, row, strict=True)},
            )
            for row in softmax(logits)
        ]

    def answer(
        self, one: Input, windows: Sequence[Window], outputs: Sequence[np.ndarray]
    ) -> Prediction:
        """The likeliest label."""
        return self.decode(outputs[0][None])[0]

    def target(
        self, one: Any, answer: Prediction, label: str | None = None, word: str | None = None
    ) -> Target:
        """The log-odds of a label."""
        if len(self.labels) < 2:
            raise OptionError("This adapter has one label, which is always its answer.")
        label = answer.label if label is None else label
        return Target(label, index=index_of(self.labels, label))

    def reading(
        self, target: Target, windows: Sequence[Window], outputs: Sequence[np.ndarray]
    ) -> Reading:
        """The label's logit against all others'."""
        return Reading(0, lambda out_BL: log_odds(out_BL, target.index))

    def change(
        self, before: Prediction, after: Prediction, swap: Swapper
    ) -> tuple[bool | None, float | None]:
        """Whether the label is another; the change of the first one's probability."""
        return before.label != after.label, after.scores[before.label] - before.score
