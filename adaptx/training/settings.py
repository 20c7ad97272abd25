"""How an adapter is trained: the settings, and what they may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adaptx.errors import OptionError, choices
from adaptx.evaluation.metrics import metric_of
from adaptx.tasks import Task


@dataclass(frozen=True)
class Settings:
    """How to train.

    epochs        passes over the training data
    lr            AdamW's peak learning rate: linear warm-up, then linear decay to 0
    batch_size    rows of an optimizer step, over all processes and micro-batches: results don't
                  depend on how many GPUs there are, but for retrieval's (adaptx.tasks.retrieval)
    accumulate    micro-batches of a step (less memory, the same gradient)
    micro_tokens  most tokens of a process's micro-batch, padding included: a step of long rows is
                  cut into as many more micro-batches as that takes; None for no limit
    warmup        share of the steps that warm up
    weight_decay  AdamW's
    clip          largest norm of the gradient; 0 for no clipping
    smoothing     label smoothing in training: the share of a target that all labels have alike
    probe_first   begin with the probe's head instead of a random one (Kumar et al. 2022, "LP-FT",
                  arXiv 2202.10054): fewer epochs are needed
    average       score and keep the average of the weights along the way (adaptx.training.average)
    metric        what is best on dev: one of the task's (adaptx.evaluation.metrics), None for its
                  first; or dev_loss, the lowest of which is the surer sign where dev has few rows
    patience      stop after so many epochs without a better dev score; None for never
    max_length    longest text in tokens; None for the encoder's own limit
    seed          of the initialization, the shuffles and the dropout
    """

    epochs: int = 10
    lr: float = 1e-3
    batch_size: int = 16
    accumulate: int = 1
    micro_tokens: int | None = None
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    smoothing: float = 0.0
    probe_first: bool = False
    average: bool = True
    metric: str | None = None
    patience: int | None = None
    max_length: int | None = None
    seed: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Settings:
        """The settings of these names; OptionError for one that there isn't."""
        if unknown := sorted(settings.keys() - cls.__dataclass_fields__.keys()):
            known = ", ".join(cls.__dataclass_fields__)
            raise OptionError(f"Unknown setting {choices(unknown)}; there is {known}.")
        return cls(**settings)

    def for_task(self, task: Task, dev: bool) -> Settings:
        """With the task's metric; OptionError for one that it hasn't, and as `check_use`."""
        self.check_use([task], dev)
        return replace(self, metric=metric_of(task, self.metric))

    def check_use(self, tasks: Sequence[Task], dev: bool) -> None:
        """Raise OptionError for what would have no effect on these tasks, with a dev or none."""
        if self.patience and not dev:
            raise OptionError(
                f"patience={self.patience} waits for a better dev score, and there is no dev set: "
                f"give one, or leave it out."
            )
        if self.smoothing and not any(task.smooths for task in tasks):
            kinds = choices(dict.fromkeys(task.kind for task in tasks))
            raise OptionError(
                f"smoothing={self.smoothing:g} would have no effect on {kinds}: leave it out."
            )

    def __post_init__(self) -> None:
        for name in ("probe_first", "average"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r} must be True or False.")
        counts = ("epochs", "batch_size", "accumulate", "micro_tokens", "patience", "max_length")
        for name in counts:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise OptionError(f"{name}={value!r} must be a whole number, at least 1.")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise OptionError(f"seed={self.seed!r} must be a whole number from 0 to 2^31 - 1.")
        bounds = {"lr": 1e30, "warmup": 1, "weight_decay": 1e30, "clip": 1e30, "smoothing": 1}
        for name, below in bounds.items():
            value = getattr(self, name)
            number = isinstance(value, (int, float))
            if not number or not 0 <= value < below or (name == "lr" and value == 0):
                least = "above 0" if name == "lr" else "at least 0"
                raise OptionError(f"{name}={value!r} must be a number, {least}, below {below:g}.")
        if self.accumulate > self.batch_size:
            raise OptionError(
                f"accumulate={self.accumulate} cuts a batch of {self.batch_size} into nothing."
            )
