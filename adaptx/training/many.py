"""Many adapters in one job: their rows share each frozen forward pass.

A step takes the next batch of each running member, puts them together, and runs the encoder once;
each row goes through its own adapter. Losses, clipping, optimizers and schedules stay each
member's own, so the weights are those of separate trainings, up to rounding. A member that is
finished leaves its place to the next. Several processes divide the members among them, and go their
own ways, or they divide the rows of every batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from adaptx.adapters.adapter import Adapter
from adaptx.encoder.encoder import Encoder
from adaptx.errors import OptionError, TrainingInterrupted, choices
from adaptx.training.checkpoint import check_interval
from adaptx.training.display import ManyDisplay
from adaptx.training.distributed import check_distribution, fsdp_asked, held
from adaptx.training.many_file import DIVIDE, check_names
from adaptx.training.member import Member, Trainee
from adaptx.training.probe import begin_heads
from adaptx.training.processes import FAILURES, Alone, Meeting, divided, gathered
from adaptx.training.resuming import find_checkpoint
from adaptx.training.routed import Routed
from adaptx.training.runlog import check_run
from adaptx.training.shared_step import SharedStep
from adaptx.training.stopping import SIGNALS, Stopping
from adaptx.training.waiting import Waiting, jobs_of, look_back

T = TypeVar("T")

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Trained:
    """What came of a job: adapters by name, in the order they were asked for, and what failed."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)

    @property
    def whole(self) -> list[Adapter]:
        """All adapters in it, with those that were kept of what failed."""
        kept = [getattr(error, "adapter", None) for error in self.failed.values()]
        return [*self.adapters.values(), *(adapter for adapter in kept if adapter is not None)]


def train_many(
    encoder: Encoder,
    members: Sequence[Member],
    *,
    slots: int = 8,
    precision: str | None = None,
    fast: bool = True,
    divide: str = "adapters",
    runs: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: float = 300.0,
    accelerator: Accelerator | None = None,
    done: Callable[[Adapter], None] | None = None,
) -> Trained:
    """Train members together, at most `slots` at a time.

    `precision` is "no", "bf16" or "auto"; `runs` is a folder for a run of each; `done` is given
    each adapter as soon as it is finished, by one process. A member that diverges, or can't be
    written, is dropped, and the others go on.

    Of several processes each trains some of the members by itself, `slots` at a time (`divide` is
    "adapters"); or each has a part of every batch's rows, as in `ax.train` ("rows"), for members
    that are few, or large. All return the same. The first one's `runs` counts.

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
    if divide not in DIVIDE:
        raise OptionError(f"divide={divide!r} is none of {choices(DIVIDE)}.")
    accelerator = accelerator or accelerator_for(precision)
    _check_launch(accelerator)
    own = accelerator if divide == "rows" else Alone.of(accelerator)
    encoder.to(accelerator.device)
    jobs = jobs_of(encoder, members, own)
    runs = gathered(accelerator, runs)[0]
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    logs = [check_run(Path(runs) / name, (), None, resume) if runs else None for name in names]
    waiting = [
        Waiting(job, member.config, log)
        for job, member, log in zip(jobs, members, logs, strict=True)
    ]
    look_back(waiting, accelerator)
    meeting = None
    if own is not accelerator:
        meeting = Meeting(accelerator)
        parts = divided([one.cost for one in waiting], accelerator.num_processes)
        waiting = [waiting[place] for place in parts[accelerator.process_index]]
    first = [one.job for one in waiting if one.job.options.probe_first and not one.step]
    seed = jobs[0].options.seed + own.process_index
    del jobs  # those of other processes need no memory here
    left = sum(one.left for one in waiting)
    with held(encoder, accelerator, dtype if fast else None) as working:
        if first:
            groups = [[replace(job, encoder=working)] for job in first]
            begin_heads(groups, fast=fast, dtype=dtype, silent=not accelerator.is_main_process)
        set_seed(seed)  # dropout: all of a process draw from one stream
        with (
            SharedStep(working, dtype, own) as take_step,
            ManyDisplay(accelerator, len(waiting), left, meeting is not None) as display,
            Stopping(runs is not None) as stopping,
        ):
            idle = accelerator.num_processes - len(members) if meeting is not None else 0
            if idle > 0 and accelerator.is_main_process:
                display.say(f"{idle} processes have no adapter: divide the rows, and they help.")
            under_way = _UnderWay(take_step, waiting, slots, fast, checkpoint_every, done, display)
            found = under_way.to_the_end(stopping, Path(runs or ""))
            if meeting is not None:
                found = _of_all(found, meeting, stopping, names, Path(runs or ""))
                for adapter in found.whole:
                    adapter.to(encoder.device)
    return Trained(_in_order(found.adapters, names), _in_order(found.failed, names))


def _check_launch(accelerator: Accelerator) -> None:
    """OptionError for a launch that no job of many adapters can have."""
    check_distribution(accelerator)
    if accelerator.scaler is not None:
        raise OptionError("Many adapters train in fp32 or bf16, not in fp16: choose one of those.")
    if fsdp_asked() and accelerator.num_processes > 1:
        raise OptionError(
            "FSDP divides the encoder for one adapter at a time: use ax.train. Many adapters "
            "train where the encoder fits on each device, as in recipes/accelerate/gpus_8.yaml."
        )


def _in_order(found: dict[str, T], names: Sequence[str]) -> dict[str, T]:
    return {name: found[name] for name in names if name in found}


def _of_all(
    mine: Trained, meeting: Meeting, stopping: Stopping, names: Sequence[str], runs: Path
) -> Trained:
    """What came of the members of all processes, on each of them; TrainingInterrupted."""
    for adapter in mine.whole:
        adapter.to("cpu")
    every = meeting.gathered(mine, stopping)
    if every is None:
        assert stopping.signal is not None
        others = [name for name in names if name not in {**mine.adapters, **mine.failed}]
        raise TrainingInterrupted(stopping.signal, 0, runs, others)
    return Trained(
        {name: adapter for one in every for name, adapter in one.adapters.items()},
        {name: error for one in every for name, error in one.failed.items()},
    )


class _UnderWay:
    """A job: who waits, who trains, and what came of the others."""

    def __init__(
        self,
        take_step: SharedStep,
        waiting: Sequence[Waiting],
        slots: int,
        fast: bool,
        every: float,
        done: Callable[[Adapter], None] | None,
        display: ManyDisplay,
    ):
        self.take_step, self.slots, self.fast = take_step, slots, fast
        self.encoder, self.accelerator = take_step.encoder, take_step.accelerator
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
                signal, due = self._asked(stopping)
                if signal is not None or due:
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

    def _asked(self, stopping: Stopping) -> tuple[int | None, bool]:
        """The signal that a process has got, and whether one finds that a checkpoint is due."""
        due = any(one.resuming.due for one in self.running)
        if self.accelerator.num_processes == 1:
            return stopping.signal, due
        mine = torch.tensor([float(due), *(float(stopping.signal == s) for s in SIGNALS)])
        asked = self.accelerator.reduce(mine.to(self.accelerator.device), "sum").tolist()
        signals = [number for number, count in zip(SIGNALS, asked[1:], strict=True) if count]
        return (signals[0] if signals else None), bool(asked[0])

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
        dtype = self.take_step.dtype
        routed = Routed(self.encoder, one.job.adapter, fast=self.fast, dtype=dtype)
        if routed.why_plain not in self.said:  # then all that run with it aren't, either
            self.display.say(f"Not on the fast path: {routed.why_plain}.")
            self.said.add(routed.why_plain)
        found = find_checkpoint(one.job, one.run) if one.step and one.run is not None else None
        run = None if one.done else one.run
        made = Trainee(one.job, one.config, routed.train(), run, self.every, found)
        if found is not None and not made.finished:
            self.display.goes_on(one.name, found.folder, found.step)
        return made

    def _step(self) -> None:
        """One shared step; who is finished, or fails, leaves."""
        started = time.perf_counter()
        taking = list(self.running)
        stepped = self.take_step(taking)
        seen = dict(zip(taking, stepped, strict=True))
        met = self.take_step.each(lambda one: one.descend(seen[one][0]), taking)
        for one, error in met.items():
            self._fail(one, error)
        self._each(lambda one: one.go_on(*seen[one]))
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
                self._fail(trainee, error)

    def _fail(self, trainee: Trainee, error: Exception) -> None:
        self.running.remove(trainee)
        trainee.fail(error)
        self._drop(trainee, error)

    def _drop(self, one: Waiting | Trainee, error: Exception) -> None:
        self.found.failed[one.name] = error
        self.display.failed(one.name, error, one.left)
