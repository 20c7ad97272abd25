"""What is kept of a training: its best epoch's weights, and the facts that the adapter records."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptx.adapters import own_model
from adaptx.adapters.adapter import Adapter
from adaptx.adapters.own_model import Full
from adaptx.encoder.encoder import Encoder
from adaptx.errors import OptionError, TrainingDiverged
from adaptx.evaluation.metrics import DEV_LOSS, goodness
from adaptx.tasks import Classification, Task
from adaptx.training.plan import Plan
from adaptx.training.rows import EncodedRows, MixedRows, Rows
from adaptx.training.runlog import method_config
from adaptx.training.scoring import dev_scores
from adaptx.training.settings import Settings

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftConfig


@dataclass(frozen=True)
class Job:
    """One training: what is trained, on what, how, and by whom.

    Raises OptionError where pairs have no other pairs to learn from.
    """

    encoder: Encoder
    adapter: Adapter
    task: Task
    options: Settings
    accelerator: Accelerator
    train: Rows
    dev: EncodedRows | MixedRows

    def __post_init__(self) -> None:
        options, processes = self.options, self.accelerator.num_processes
        self._check_micro_tokens()
        if not self.task.contrasts or not isinstance(self.train, EncodedRows):
            return
        rows = min(options.batch_size, len(self.train))
        pairs = rows // (options.accumulate * processes)
        if pairs < 2 and not any(record.negatives for record in self.train.records):
            raise OptionError(
                f"Retrieval learns from the other pairs of a micro-batch, and there are none: "
                f"{rows} pairs of a batch, in {options.accumulate} micro-batches on {processes} "
                f"processes, are less than two each. Raise batch_size, or give hard negatives."
            )

    def _check_micro_tokens(self) -> None:
        most = self.options.micro_tokens
        if most is None:
            return
        if self.task.contrasts or self.train.lengths is None:
            why = (
                "retrieval learns from the other pairs of a micro-batch"
                if self.task.contrasts
                else "the lengths of rows that are read in their turns aren't known"
            )
            raise OptionError(f"micro_tokens={most} can't be kept: {why}. Say accumulate instead.")
        if (longest := int(self.train.lengths.max())) > most:
            raise OptionError(
                f"micro_tokens={most}, and the longest row has {longest} tokens: give at least as "
                f"many, or cut the texts by max_length."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """How it is trained, by name."""
        return asdict(self.options)

    @property
    def solved(self) -> bool:
        """Whether it is a probe that is fitted, not trained in steps."""
        return self.adapter.facts.method == "probe" and isinstance(self.task, Classification)

    def classified(self) -> list[list[Job]]:
        """The jobs whose heads are of classification, those that share a head together."""
        return [[self]] if isinstance(self.task, Classification) else []

    def plan(self) -> Any:
        """Which rows this process takes at each step."""
        return Plan(
            len(self.train),
            self.options.batch_size,
            self.options.accumulate,
            self.accelerator.num_processes,
            self.accelerator.process_index,
            self.options.seed,
            self.train.lengths,
            self.options.micro_tokens,
        )

    def loss_sum(self, model: nn.Module, rows: np.ndarray, epoch: int) -> tuple[Tensor, int]:
        """The sum of the rows' losses, and their tokens without padding.

        When this process has no rows: 0, with a gradient of zeros.
        """
        some = rows if len(rows) else np.zeros(1, dtype=np.int64)
        batch, targets, shares = self.train.batch(some, (self.options.seed, epoch))
        outputs = model(self.on_device(batch.input_ids), self.on_device(batch.attention_mask))
        losses = self.losses(outputs, self.on_device(targets), self.options.smoothing)
        total = (losses * self.on_device(shares)).sum()
        total = total + own_model.regularization(self.adapter.model) * len(some)
        return (total, int(batch.attention_mask.sum())) if len(rows) else (total * 0.0, 0)

    def dev_scores(
        self, model: nn.Module, between: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Loss and scores on dev; `between` is called before each batch (see scoring)."""
        model.eval()
        return dev_scores(self, model, between)

    def on_device(self, array: np.ndarray) -> Tensor:
        """An array where the training's process computes."""
        return torch.from_numpy(array).to(self.accelerator.device)

    def losses(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """The task's losses, fp32; one that doesn't answer texts gets the vocabulary's table."""
        table = {} if self.task.answers else {"table": self.encoder.table}
        return self.task.losses(outputs, targets, smoothing, **table)

    def about(self, config: PeftConfig | Full | None) -> dict[str, Any]:
        """What a run's log says of the training before it begins."""
        facts = self.adapter.facts
        return {
            "name": facts.name,
            "encoder": facts.encoder,
            "method": facts.method,
            "task": facts.task,
            "config": method_config(config),
            **self.facts(),
        }

    def record(
        self,
        history: list[dict[str, Any]],
        best: dict[str, Any] | None = None,
        seconds: float | None = None,
    ) -> None:
        """Write into the adapter how it was trained."""
        facts = {
            **self.facts(),
            "best": (best or history[-1]) if len(self.dev) else None,
            "history": history,
        }
        self.adapter.with_training(facts | ({"seconds": round(seconds, 1)} if seconds else {}))

    def facts(self) -> dict[str, Any]:
        """What an adapter and a run say of how it was trained; few settings are a solver's."""
        settings = self.settings
        used = ("seed", "max_length", "metric") if self.solved else tuple(settings)
        return {
            "settings": {name: settings[name] for name in used},
            "precision": "no" if self.solved else self.accelerator.mixed_precision,
            "processes": self.accelerator.num_processes,
            "train_rows": len(self.train),
            "dev_rows": len(self.dev),
        }


class Kept:
    """The epochs so far, and the best: by dev's metric, then its loss; without dev, the last."""

    def __init__(self, job: Job):
        self.job, self.started = job, time.perf_counter()
        self.best: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.weights: dict[str, Tensor] = {}
        self.config: dict[str, Any] = {}

    def offer(self, entry: dict[str, Any]) -> bool:
        """Keep the adapter as it is now if the epoch is the best so far; whether it is."""
        self.history.append(entry)
        if self.best and self._rank(entry) <= self._rank(self.best):
            return False
        self.best, self.weights = entry, copy.deepcopy(self.job.adapter.weights())
        self.config = copy.deepcopy(_options(self.job.adapter.config))
        return True

    def _rank(self, entry: Mapping[str, Any]) -> tuple[float, float]:
        if DEV_LOSS not in entry:
            return float(entry["epoch"]), 0.0
        return goodness(self.job.options.metric or "", entry), -entry[DEV_LOSS]

    def restore(self) -> None:
        """Put the best epoch's weights back, and record the training."""
        self.job.adapter.load_state_dict(self.weights, strict=False)
        _options(self.job.adapter.config).update(self.config)  # AdaLoRA writes its ranks there
        self.job.record(self.history, self.best, time.perf_counter() - self.started)

    def check(
        self, loss: float, gradient: float | None, step: int, epoch: int, rows: np.ndarray
    ) -> None:
        """Raise TrainingDiverged where a step's loss or gradient's norm (if known) isn't finite."""
        if not math.isfinite(loss):
            raise self.diverged(f"the loss is {loss}", step, epoch, rows)
        if gradient is not None and not math.isfinite(gradient):
            raise self.diverged("the gradient isn't finite", step, epoch, rows)

    def diverged(
        self, what: str, step: int, epoch: int, rows: Sequence[int] | np.ndarray = ()
    ) -> TrainingDiverged:
        """The error for a training that left the numbers, with the last good adapter.

        `rows` are the places of the step's rows in the training data.
        """
        if self.best:
            self.restore()
            good = f"The adapter of epoch {self.best['epoch']} is kept"
        else:
            good = "No epoch was finished, so there is no adapter to keep"
        adapter = self.job.adapter.requires_grad_(False).eval() if self.best else None
        said = f", {self.job.train.said(np.asarray(rows))}" if len(rows) else ""
        return TrainingDiverged(
            f"Training diverged at step {step} (epoch {epoch}{said}): {what}. {good}. "
            f"Lower the learning rate (now {self.job.options.lr:g}), or raise the warm-up.",
            step,
            adapter,
        )


def _options(config: object) -> dict[str, Any]:
    return vars(config) if config is not None else {}
