"""Many adapters in one job: their rows share each frozen forward pass.

A step takes the next batch of each running member, puts them together, and runs the encoder once;
each row goes through its own adapter. Losses, clipping, optimizers and schedules stay each
member's own, so the weights are those of separate trainings, up to rounding. A member that is
finished leaves its place to the next.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from adaptx.adapters.adapter import Adapter
from adaptx.adapters.bank import Bank
from adaptx.encoder.encoder import Encoder
from adaptx.errors import AdaptxError, DataError, FolderError, OptionError, TrainingInterrupted
from adaptx.training.checkpoint import check_interval
from adaptx.training.display import ManyDisplay
from adaptx.training.distributed import held
from adaptx.training.many_file import check_names
from adaptx.training.member import Member, Trainee
from adaptx.training.probe import solve_head
from adaptx.training.record import Job
from adaptx.training.resuming import find_checkpoint
from adaptx.training.routed import Routed
from adaptx.training.runlog import check_run
from adaptx.training.runs import FACTS, read_run
from adaptx.training.stopping import Stopping

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftConfig


FAILURES = (AdaptxError, OSError)  # of one adapter, which the others outlive


@dataclass
class Trained:
    """What came of a job: adapters by name, in the order they were asked for, and what failed."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)


@dataclass
class Waiting:
    """A member that isn't training yet: its run, which has gone `before` seconds and to `step`.

    `done` says that an earlier job finished it, and that it was handed over.
    """

    job: Job
    config: PeftConfig
    run: Path | None
    step: int = 0
    before: float = 0.0
    done: bool = False

    @property
    def name(self) -> str:
        """The adapter's."""
        return self.job.adapter.name

    @property
    def left(self) -> int:
        """How many steps it has yet to take."""
        options = self.job.options
        return options.epochs * -(-len(self.job.train) // options.batch_size) - self.step


def train_many(
    encoder: Encoder,
    members: Sequence[Member],
    *,
    slots: int = 8,
    precision: str | None = None,
    fast: bool = True,
    runs: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: float = 300.0,
    accelerator: Accelerator | None = None,
    done: Callable[[Adapter], None] | None = None,
) -> Trained:
    """Train members together, at most `slots` at a time, in one process.

    `precision` is "no", "bf16" or "auto"; `runs` is a folder for a run of each; `done` is given
    each adapter as soon as it is finished. A member that diverges, or can't be written, is dropped,
    and the others go on.

    With `runs`, each that trains writes a checkpoint at most `checkpoint_every` seconds after the
    one before, and when SIGTERM or SIGINT come: then TrainingInterrupted is raised. `resume` goes
    on from there, to the same weights: what was finished is handed back as it is (not to `done`,
    which had it), and what hadn't begun begins.

    Raises OptionError, before any training, that says of each member what is wrong with it.
    """
    from accelerate.utils import set_seed

    from adaptx.training.train import accelerator_for

    names = [member.name for member in members]
    check_names(names)
    if not members or slots < 1:
        raise OptionError(f"{len(members)} adapters in {slots} slots: give at least one of each.")
    check_interval(checkpoint_every)
    if resume and runs is None:
        raise OptionError("Which runs are to be resumed? Give their folder, runs='runs/NAME'.")
    accelerator = accelerator or accelerator_for(precision)
    if accelerator.num_processes > 1 or accelerator.scaler is not None:
        raise OptionError(
            f"Many adapters train in one process and in fp32 or bf16, not in "
            f"{accelerator.num_processes} with {accelerator.mixed_precision}: start one job for "
            f"each GPU, with a part of the adapters."
        )
    encoder.to(accelerator.device)
    jobs = jobs_of(encoder, members, accelerator)
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    logs = [check_run(Path(runs) / name, (), None, resume) if runs else None for name in names]
    waiting = [
        Waiting(job, member.config, log)
        for job, member, log in zip(jobs, members, logs, strict=True)
    ]
    _look_back(waiting)
    first = [one.job for one in waiting if one.job.options.probe_first and not one.step]
    for job in track(first, "Probes' heads", console=Console(stderr=True), disable=not first):
        solve_head([job], job.options.metric or "")
    set_seed(jobs[0].options.seed)  # dropout: all draw from one stream
    with (
        held(encoder, accelerator, dtype if fast else None) as working,
        ManyDisplay(accelerator, len(waiting), sum(one.left for one in waiting)) as display,
        Stopping(runs is not None) as stopping,
    ):
        under_way = _UnderWay(working, waiting, slots, dtype, fast, checkpoint_every, done, display)
        found = under_way.to_the_end(stopping, Path(runs or ""))
    order = {name: found.adapters[name] for name in names if name in found.adapters}
    return Trained(order, found.failed)


def jobs_of(encoder: Encoder, members: Sequence[Member], accelerator: Accelerator) -> list[Job]:
    """Each member's data and adapter; OptionError that says of each what is wrong with it."""
    jobs, wrong = [], []
    for member in members:
        try:
            jobs.append(member.job(encoder, accelerator))
        except (OptionError, DataError) as error:
            wrong.append(f"{member.name}: {error}")
    if wrong:
        raise OptionError(f"Nothing was trained. {' '.join(wrong)}")
    return jobs


def _look_back(waiting: Sequence[Waiting]) -> None:
    """See how far each one's run is, if it has one; OptionError that says of each what is wrong."""
    wrong = []
    for one in waiting:
        if one.run is None or not (one.run / FACTS).is_file():
            continue
        try:
            run = read_run(one.run)
            if run.state == "running":
                raise FolderError(f"{one.run} is being trained by another process: let it end.")
            found = find_checkpoint(one.job, one.run)
        except (OptionError, FolderError) as error:
            wrong.append(f"{one.name}: {error}")
            continue
        if found is not None:
            over = found.state["progress"]["epoch"] > one.job.options.epochs
            one.step, one.before, one.done = found.step, run.seconds, over and run.state == "done"
    if wrong:
        raise OptionError(f"Nothing was trained. {' '.join(wrong)}")


class _UnderWay:
    """A job: who waits, who trains, and what came of the others."""

    def __init__(
        self,
        encoder: Encoder,
        waiting: Sequence[Waiting],
        slots: int,
        dtype: torch.dtype,
        fast: bool,
        every: float,
        done: Callable[[Adapter], None] | None,
        display: ManyDisplay,
    ):
        self.encoder, self.slots, self.dtype, self.fast = encoder, slots, dtype, fast
        self.every, self.done, self.display = every, done, display
        # What is done takes no slot; of the random states the last one that is put back counts.
        self.queue = deque(sorted(waiting, key=lambda one: not one.done))
        self.running: list[Trainee] = []
        self.found = Trained()
        self.said: set[str | None] = {None}

    def to_the_end(self, stopping: Stopping, runs: Path) -> Trained:
        """Train them all. Raises TrainingInterrupted, which `runs` is for."""
        try:
            while self.queue or self.running:
                self._fill()
                if self.running:
                    self._step()
                signal = stopping.signal
                if signal is not None or any(one.resuming.due for one in self.running):
                    self._each(Trainee.checkpoint)
                left = [one.name for one in self.running] + [one.name for one in self.queue]
                if signal is not None and left:
                    step = max((one.at.step for one in self.running), default=0)
                    raise TrainingInterrupted(signal, step, runs, left)
        except BaseException as error:
            for trainee in self.running:
                trainee.fail(error)
            raise
        return self.found

    def _fill(self) -> None:
        """Let those that wait begin, while there are slots."""
        while self.queue and len(self.running) < self.slots:
            one = self.queue.popleft()
            try:
                trainee = self._begun(one)
            except FAILURES as error:
                self._drop(one, error)
                continue
            self.running.append(trainee)
            if trainee.finished:
                self._finish([trainee], None if one.done else self.done)

    def _begun(self, one: Waiting) -> Trainee:
        one.job.adapter.to(self.encoder.device)
        routed = Routed(self.encoder, one.job.adapter, fast=self.fast, dtype=self.dtype)
        if routed.why_plain not in self.said:  # then all that run with it aren't, either
            self.display.say(f"Not on the fast path: {routed.why_plain}.")
            self.said.add(routed.why_plain)
        found = find_checkpoint(one.job, one.run) if one.step and one.run is not None else None
        run = None if one.done else one.run
        made = Trainee(one.job, one.config, routed.train(), run, self.every, found, one.before)
        if found is not None and not made.finished:
            self.display.goes_on(one.name, found.folder, found.step)
        return made

    def _step(self) -> None:
        """One shared step; who is finished, or fails, leaves."""
        started = time.perf_counter()
        taking = list(self.running)
        stepped = _shared_step(self.encoder, taking, self.dtype)
        seen = dict(zip(taking, stepped, strict=True))
        self._each(lambda one: one.step(*seen[one]))
        self._finish([one for one in self.running if one.finished], self.done)
        seconds = time.perf_counter() - started
        self.display.shared_step(taking, sum(tokens for _, tokens in stepped), seconds)

    def _finish(self, trainees: Sequence[Trainee], done: Callable[[Adapter], None] | None) -> None:
        def finish(one: Trainee) -> None:
            self.found.adapters[one.name] = one.finish(done)
            self.running.remove(one)
            self.display.finished(one.name, one.kept.best, one.left)

        self._each(finish, trainees)

    def _each(
        self, act: Callable[[Trainee], None], trainees: Sequence[Trainee] | None = None
    ) -> None:
        """Do it with each that trains, or with these; one that fails is dropped."""
        for trainee in list(self.running) if trainees is None else trainees:
            try:
                act(trainee)
            except FAILURES as error:
                self.running.remove(trainee)
                trainee.fail(error)
                self._drop(trainee, error)

    def _drop(self, one: Waiting | Trainee, error: Exception) -> None:
        self.found.failed[one.name] = error
        self.display.failed(one.name, error, one.left)


def _shared_step(
    encoder: Encoder, running: Sequence[Trainee], dtype: torch.dtype
) -> list[tuple[float, int]]:
    """The forward pass of all, and the backward pass of all losses; each one's loss and tokens."""
    drawn = [(trainee, trainee.drawn()) for trainee in running]
    # Neighbours of like length, which attention takes together.
    drawn.sort(key=lambda pair: max(map(len, pair[1])))
    ids = [ids for _, its in drawn for ids in its]
    counts = [len(its) for _, its in drawn]
    spans = list(pairwise(accumulate(counts, initial=0)))
    batch = encoder.text.batch(ids, range(len(ids)))
    input_ids = torch.from_numpy(batch.input_ids).to(encoder.device)
    mask = torch.from_numpy(batch.attention_mask).to(encoder.device)
    adapters = [trainee.job.adapter for trainee, _ in drawn]
    bert = running[0].routed.bert
    if bert is not None and all(trainee.routed.bert for trainee in running):
        hidden = bert.hidden(input_ids, mask, list(zip(counts, adapters, strict=True)))
    else:
        hidden = _banked(encoder, adapters, counts, input_ids, mask, dtype)
    losses = [
        trainee.loss(hidden[start:end], mask[start:end])
        for (trainee, _), (start, end) in zip(drawn, spans, strict=True)
    ]
    # Each loss depends on its own adapter alone, so the sum's gradient is each one's own.
    torch.stack(losses).sum().backward()
    found = {
        trainee: (float(loss.detach()), int(mask[start:end].sum()))
        for (trainee, _), loss, (start, end) in zip(drawn, losses, spans, strict=True)
    }
    return [found[trainee] for trainee in running]


def _banked(
    encoder: Encoder,
    adapters: Sequence[Adapter],
    counts: Sequence[int],
    input_ids: Tensor,
    mask: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Token states through the encoder's own modules, each row's adapter from a bank."""
    slots = [slot for slot, count in enumerate(counts, 1) for _ in range(count)]
    bank = Bank.of(adapters, encoder)
    route = bank.route(slots, training=True) if bank.sites else None
    device = input_ids.device.type
    cast = dtype is not torch.float32
    with torch.autocast(device, dtype) if cast else nullcontext():
        return encoder.hidden(input_ids, mask, route).float()
