"""One adapter of a job that trains many: what it is to be, and how far it is.

Each has its own data, order of rows, optimizer, clipping, schedule, averages and best epoch; only
the frozen forward pass is shared (adaptx.training.many).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from adaptx.adapters.adapter import Adapter
from adaptx.adapters.own_model import Full
from adaptx.data.streams import Columns
from adaptx.encoder.encoder import Encoder
from adaptx.errors import OptionError
from adaptx.tasks import Classification, Task
from adaptx.training.average import Average
from adaptx.training.optimizing import optimizer_and_schedule
from adaptx.training.plan import Plan, Step
from adaptx.training.probe import check_probe_first
from adaptx.training.record import Job, Kept
from adaptx.training.routed import Routed
from adaptx.training.rows import Data, EncodedRows, open_data
from adaptx.training.runlog import RunLog
from adaptx.training.scoring import end_epoch
from adaptx.training.settings import Settings

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftConfig


@dataclass(frozen=True)
class Member:
    """What `ax.train` would be told of one adapter; `settings` are those of Settings."""

    name: str
    config: PeftConfig
    train: Data
    dev: Data | None = None
    task: Task = field(default_factory=Classification)
    language: str | None = None
    text_column: str | None = None
    other_column: str | None = None
    label_column: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def job(self, encoder: Encoder, accelerator: Accelerator) -> Job:
        """Read and encode its data, and make its adapter: as `ax.train` does.

        Raises DataError, SiteError or OptionError.
        """
        options = Settings.of(self.settings)
        if options.accumulate > 1:
            raise OptionError("accumulate is for an adapter that trains alone: use ax.train.")
        columns = Columns(self.text_column, self.label_column, self.other_column)
        train = list(open_data(self.train, self.task, columns))
        dev = list(open_data(self.dev, self.task, columns)) if self.dev is not None else []
        task = self.task.fit(train, dev)
        options = options.for_task(task, self.dev is not None)
        check_probe_first(options, task)
        if self.config is None or isinstance(self.config, Full):
            raise OptionError("A probe or a whole model shares no forward pass: use ax.train.")
        adapter = Adapter.new(
            encoder,
            task,
            self.config,
            name=self.name,
            language=self.language,
            max_length=options.max_length,
            seed=options.seed,
        )
        if adapter.model is not None:
            raise OptionError(
                f"{adapter.facts.method} brings layers of its own, and shares no forward pass: use "
                f"ax.train, or LoRA."
            )
        rows = EncodedRows.of(encoder, adapter, task, train)
        held_out = EncodedRows.of(encoder, adapter, task, dev)
        return Job(encoder, adapter, task, options, accelerator, rows, held_out)


class Trainee:
    """A member in training: its next rows, and what happens with their loss."""

    def __init__(self, job: Job, config: PeftConfig, routed: Routed, run: Path | None):
        assert isinstance(job.train, EncodedRows)  # as Member.job makes them
        self.job, self.routed, self.options, self.train = job, routed, job.options, job.train
        self.plan = Plan(
            len(job.train), self.options.batch_size, 1, 1, 0, self.options.seed, job.train.lengths
        )
        self.optimizer, self.schedule = optimizer_and_schedule(
            job.adapter, self.options, self.options.epochs * len(self.plan)
        )
        self.average = Average(job.adapter.trainable() if self.options.average else [])
        self.kept = Kept(job)
        self.log = RunLog(run, job.accelerator, job.about(config))
        self.log.__enter__()
        self.step_number, self.epoch = 0, 1
        self.losses: list[float] = []
        self.targets: Sequence[np.ndarray] = ()
        self.ahead = iter(self.plan.steps(1))
        self.started = time.perf_counter()
        self.now: Step | None = next(self.ahead)

    @property
    def rows(self) -> np.ndarray:
        """The places of its next batch's rows."""
        assert self.now is not None
        return self.now.all_rows

    def drawn(self) -> Sequence[list[int]]:
        """Token ids of its next batch's windows; `loss` will have their targets."""
        ids, self.targets = self.train.drawn(self.rows, (self.options.seed, self.epoch))
        return ids

    def loss(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The mean loss of its batch, given its rows' states `[B, S, H]` and mask `[B, S]`."""
        outputs = self.job.adapter.outputs(hidden, mask)
        targets = self.job.on_device(self.job.task.stacked(self.targets, mask.shape[1]))
        losses = self.job.losses(outputs, targets, self.options.smoothing)
        return losses.sum() / len(losses)

    def step(self, loss: float, tokens: int) -> bool:
        """After the backward pass: clip, step, score an epoch that ends; whether it is finished.

        Raises TrainingDiverged.
        """
        self.step_number += 1
        number, epoch, adapter = self.step_number, self.epoch, self.job.adapter
        norm = torch.nn.utils.clip_grad_norm_(adapter.trainable(), self.options.clip or math.inf)
        (lr, *_), gradient = self.schedule.get_last_lr(), float(norm)
        self.kept.check(loss, gradient, number, epoch, self.rows)
        self.log.step(number, epoch, loss=loss, lr=lr, grad_norm=gradient, tokens=tokens)
        self.optimizer.step()
        self.average.update()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.losses.append(loss)
        self.now = next(self.ahead, None)
        return self.now is None and self._epoch()

    def _epoch(self) -> bool:
        """Score the epoch, and begin the next one; whether there is none."""
        epoch = self.epoch
        _, _, tired = end_epoch(
            self.job,
            self.routed,
            self.kept,
            self.average,
            self.log,
            epoch=epoch,
            step=self.step_number,
            losses=self.losses,
            started=self.started,
        )
        self.routed.train()
        if epoch == self.options.epochs or tired:
            return True
        self.epoch, self.losses, self.started = epoch + 1, [], time.perf_counter()
        self.ahead = iter(self.plan.steps(self.epoch))
        self.now = next(self.ahead)
        return False

    def finish(self) -> Adapter:
        """The best epoch's adapter; the run is done."""
        self.kept.restore()
        self.log.__exit__(None, None, None)
        return self.job.adapter.requires_grad_(False).eval()

    def fail(self, error: BaseException) -> None:
        """The run failed, or was interrupted with all the others."""
        self.log.__exit__(type(error), error, error.__traceback__)
