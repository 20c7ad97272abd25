"""Members of a job that don't train yet: their data is read, and how far they were is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptx.encoder.encoder import Encoder
from adaptx.errors import DataError, FolderError, OptionError
from adaptx.training.member import Member
from adaptx.training.processes import gathered
from adaptx.training.record import Job
from adaptx.training.resuming import find_checkpoint
from adaptx.training.runs import FACTS, read_run

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftConfig


@dataclass
class Waiting:
    """A member that isn't training yet: its run, which has gone to `step`.

    `done` says that an earlier job finished it, and that it was handed over.
    """

    job: Job
    config: PeftConfig
    run: Path | None
    step: int = 0
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

    @property
    def cost(self) -> float:
        """How many tokens all its epochs read: those done, too, so that a job that goes on is
        divided as it was.
        """
        lengths = self.job.train.lengths
        assert lengths is not None  # rows in memory
        return self.job.options.epochs * float(lengths.sum())


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


def look_back(waiting: Sequence[Waiting], accelerator: Accelerator) -> None:
    """See how far each one's run is, if it has one; OptionError that says of each what is wrong."""
    seen = [_seen(one.run) for one in waiting]
    _check_shared(seen, accelerator)
    wrong = []
    for one, (state, why) in zip(waiting, seen, strict=True):
        if state is None or one.run is None:
            continue
        try:
            if why:
                raise FolderError(why)
            found = find_checkpoint(one.job, one.run)
        except (OptionError, FolderError) as error:
            wrong.append(f"{one.name}: {error}")
            continue
        if found is not None:
            over = found.state["progress"]["epoch"] > one.job.options.epochs
            one.step, one.done = found.step, over and state == "done"
    _check_shared([(one.step, one.done) for one in waiting], accelerator)
    if wrong:
        raise OptionError(f"Nothing was trained. {' '.join(wrong)}")


def _seen(run: Path | None) -> tuple[str | None, str]:
    """A run's state, None where there is none; and why it can't be gone on with."""
    if run is None or not (run / FACTS).is_file():
        return None, ""
    try:
        state = read_run(run).state
    except FolderError as error:
        return "unknown", str(error)
    busy = f"{run} is being trained by another process: let it end." if state == "running" else ""
    return state, busy


def _check_shared(seen: object, accelerator: Accelerator) -> None:
    if any(other != seen for other in gathered(accelerator, seen)):
        raise OptionError(
            "The processes find different runs and checkpoints. The runs' folder must be one that "
            "all machines share: put --run on a shared disk, or copy the folder to each machine."
        )
