"""One adapter of a job that trains many: what it is to be, and how far it is.

Each has its own data, order of rows, optimizer, clipping, schedule, averages and best epoch; only
the frozen forward pass is shared (adaptx.training.many).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
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
from adaptx.training.checkpoint import Checkpoint
from adaptx.training.optimizing import optimizer_and_schedule
from adaptx.training.probe import check_probe_first
from adaptx.training.processes import FAILURES, by_the_first
from adaptx.training.record import Job, Kept
from adaptx.training.resuming import Progress, Resuming
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
        if options.accumulate > 1 or options.micro_tokens:
            raise OptionError(
                "accumulate and micro_tokens are for an adapter that trains alone: use ax.train."
            )
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
    """A member in training: its next rows, and what happens with their loss.

    It goes on from `found`, a checkpoint of its `run`.
    """

    def __init__(
        self,
        job: Job,
        config: PeftConfig,
        routed: Routed,
        run: Path | None,
        every: float,
        found: Checkpoint | None = None,
    ):
        assert isinstance(job.train, EncodedRows)  # as Member.job makes them
        self.job, self.routed, self.options, self.train = job, routed, job.options, job.train
        self.plan = job.plan()
        self.steps = self.options.epochs * len(self.plan)
        self.optimizer, self.schedule = optimizer_and_schedule(
            job.adapter, self.options, self.steps
        )
        self.average = Average(job.adapter.trainable() if self.options.average else [])
        self.kept = Kept(job)
        self.resuming = Resuming(
            job, run, every, self.optimizer, self.schedule, self.average, self.kept
        )
        self.at = self.resuming.restore(found) if found else Progress()
        self.lr, self.gradient = 0.0, 0.0  # of the last step
        self.log = RunLog(run, job.accelerator, job.about(config), found)
        self.log.__enter__()
        self._begin_epoch()

    @property
    def name(self) -> str:
        """The adapter's."""
        return self.job.adapter.name

    @property
    def finished(self) -> bool:
        """Whether its last epoch is over."""
        return self.at.epoch > self.options.epochs

    @property
    def left(self) -> int:
        """How many steps all its epochs have yet."""
        return self.steps - self.at.step

    @property
    def rows(self) -> np.ndarray:
        """The places of its next batch's rows, whichever process has them."""
        assert self.now is not None
        return self.now.all_rows

    @property
    def rows_here(self) -> np.ndarray:
        """The places of those that this process has."""
        assert self.now is not None
        return self.now.micro_batches[0]

    def drawn(self) -> tuple[Sequence[list[int]], Sequence[np.ndarray]]:
        """Token ids of the windows of this process's rows, and the rows' targets."""
        return self.train.drawn(self.rows_here, (self.options.seed, self.at.epoch))

    def loss(self, hidden: Tensor, mask: Tensor, targets: Sequence[np.ndarray]) -> Tensor:
        """What this process's rows, given their states `[B, S, H]`, mask `[B, S]` and targets, have
        of the mean loss of the batch.
        """
        outputs = self.job.adapter.outputs(hidden, mask)
        stacked = self.job.on_device(self.job.task.stacked(targets, mask.shape[1]))
        losses = self.job.losses(outputs, stacked, self.options.smoothing)
        return losses.sum() / len(self.rows)

    def descend(self, loss: float) -> None:
        """After the backward pass: clip, and step. Nothing that others share is touched.

        Raises TrainingDiverged.
        """
        at, adapter = self.at, self.job.adapter
        at.step, at.place = at.step + 1, at.place + 1
        norm = torch.nn.utils.clip_grad_norm_(adapter.trainable(), self.options.clip or math.inf)
        (self.lr, *_), self.gradient = self.schedule.get_last_lr(), float(norm)
        self.kept.check(loss, self.gradient, at.step, at.epoch, self.rows)
        self.optimizer.step()
        self.average.update()
        self.schedule.step()
        self.optimizer.zero_grad()

    def go_on(self, loss: float, tokens: int) -> None:
        """After its step: log it, take up the next rows, score an epoch that ends.

        Raises TrainingDiverged.
        """
        at, gradient = self.at, self.gradient
        self.log.step(at.step, at.epoch, loss=loss, lr=self.lr, grad_norm=gradient, tokens=tokens)
        at.losses.append(loss)
        self.now = next(self.ahead, None)
        if self.now is None:
            self._end_epoch()

    def _end_epoch(self) -> None:
        at = self.at
        _, _, tired = end_epoch(
            self.job,
            self.routed,
            self.kept,
            self.average,
            self.log,
            epoch=at.epoch,
            step=at.step,
            losses=at.losses,
            started=self.started,
        )
        self.routed.train()
        self.at = Progress(at.step, (self.options.epochs if tired else at.epoch) + 1)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        """Take up the epoch where it is; there is none after the last."""
        self.started = time.perf_counter()
        steps = () if self.finished else self.plan.steps(self.at.epoch)
        self.ahead = islice(steps, self.at.place, None)
        self.now = next(self.ahead, None)

    def checkpoint(self) -> None:
        """Write one into the run's folder; FolderError where that can't be."""
        self.resuming.save(self.at)

    def finish(self, done: Callable[[Adapter], None] | None) -> Adapter:
        """The best epoch's adapter, given to `done` by the first process, after which the run is
        done. Every process calls it.

        The last checkpoint has it too: a job that is resumed has no step to take again.
        """
        try:
            self.resuming.finish(self.at.step)
        except FAILURES as error:  # the adapter itself is whole
            warnings.warn(f"{self.name} has no last checkpoint: {error}", stacklevel=2)
        self.kept.restore()
        adapter = self.job.adapter.requires_grad_(False).eval()
        if done is not None:
            by_the_first(self.job.accelerator, partial(done, adapter))
        self.log.__exit__(None, None, None)
        return adapter

    def fail(self, error: BaseException) -> None:
        """The run failed, or was interrupted with all the others."""
        self.log.__exit__(type(error), error, error.__traceback__)
