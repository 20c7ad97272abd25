"""What a person sees while an adapter trains."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from accelerate import Accelerator

from adaptx.evaluation.metrics import score_line
from adaptx.tasks.base import title

if TYPE_CHECKING:
    from typing_extensions import Self

    from adaptx.training.member import Trainee

SHOWN = 4  # running adapters whose losses are shown


class Display:
    """One display, on the main process: a bar on a terminal, and a line for each epoch.

    `metric` chooses the best epoch, whose value the bar shows.
    """

    def __init__(self, accelerator: Accelerator, total: int, metric: str | None = None):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        self.console = Console(stderr=True, quiet=not accelerator.is_main_process)
        self.bar = Progress(
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not accelerator.is_main_process,
        )
        self.task = self.bar.add_task("training", total=total)
        self.metric, self.best, self.device = metric or "", "", accelerator.device
        self.tokens, self.seconds, self.clock = 0, 0.0, time.perf_counter()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def resumed(self, checkpoint: Path, step: int) -> None:
        """Say that a training goes on, and where."""
        self.say(f"Going on after step {step}, from {checkpoint}.")
        self.bar.update(self.task, completed=step)

    def step(self, epoch: int, loss: float, tokens: int) -> None:
        """Move the bar by one optimizer step over so many tokens."""
        now = time.perf_counter()
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + now - self.clock
        self.clock = now
        said = f"epoch {epoch}  loss {loss:.4f}  {self.speed}  {self.memory}{self.best}"
        self.bar.update(self.task, advance=1, description=said)

    @property
    def speed(self) -> str:
        """Tokens of the texts for each second of steps."""
        return f"{self.tokens / self.seconds:,.0f} tokens/s"

    @property
    def memory(self) -> str:
        """What this process holds of it; on a GPU, the most that its tensors have taken."""
        if self.device.type == "cuda":
            return f"{torch.cuda.max_memory_allocated(self.device) / 1e9:.1f} GB"
        return f"{psutil.Process().memory_info().rss / 1e9:.1f} GB"

    def epoch(self, entry: dict[str, Any], best: bool) -> None:
        """Print the line of a finished epoch."""
        dev = (
            f"  dev loss {entry['dev_loss']:.4f}  {score_line(entry)}"
            if "dev_loss" in entry
            else ""
        )
        mark = "  [best]" if best and dev else ""
        self.say(
            f"epoch {entry['epoch']:>3}  loss {entry['loss']:.4f}{dev}  "
            f"{entry['seconds']:.1f} s{mark}"
        )
        for part, scores in _by_part(entry).items():
            self.say(f"           {part}  {score_line(scores)}")
        if best and self.metric in entry:
            self.best = f"  best {title(self.metric)} {entry[self.metric]:.3f}"
        self.clock = time.perf_counter()  # dev is no part of the steps' speed

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _by_part(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores of each task, or each of its languages, of several that train together."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in entry.items():
        part, _, metric = name.rpartition(".")
        if part:
            found.setdefault(part, {})[metric] = value
    return found


class ManyDisplay(Display):
    """Of a job with many adapters: one bar for all, and a line for each that is finished.

    `total` are the steps that are left to take. Where the processes have adapters of their own
    (`apart`), the bar is of the first one's, and the lines are of all.
    """

    def __init__(self, accelerator: Accelerator, adapters: int, total: int, apart: bool):
        super().__init__(accelerator, total)
        self.adapters, self.ended, self.total = adapters, 0, total
        self.whose = ""
        if apart and accelerator.num_processes > 1:
            self.console.quiet = False
            self.whose = f" by process {accelerator.process_index + 1}"

    def goes_on(self, name: str, checkpoint: Path, step: int) -> None:
        """Say that an adapter goes on, and where."""
        self.say(f"{name} goes on after step {step}, from {checkpoint}.")

    def shared_step(self, running: Sequence[Trainee], tokens: int, seconds: float) -> None:
        """A shared step is done: how those that took it stand, and how fast they are."""
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        shown = "  ".join(
            f"{one.name} {one.at.epoch}: {one.at.losses[-1]:.3f}{_best(one)}"
            for one in running[:SHOWN]
            if one.at.losses
        )
        more = f"  and {len(running) - SHOWN} more" if len(running) > SHOWN else ""
        done = f"{self.ended}/{self.adapters} done, {self.speed}, {self.memory}"
        self.bar.update(self.task, advance=len(running), description=f"{done}  {shown}{more}")

    def finished(self, name: str, best: dict[str, Any], left: int) -> None:
        """Print the line of a finished adapter, which leaves so many steps untaken."""
        self._ended(left)
        dev = f"  dev loss {best['dev_loss']:.4f}  {score_line(best)}" if "dev_loss" in best else ""
        ended = f"{self.ended} of {self.adapters} done{self.whose}"
        self.say(f"{name}: epoch {best['epoch']}{dev}  ({ended})")

    def failed(self, name: str, error: Exception, left: int) -> None:
        """Say that an adapter was dropped, and why."""
        self._ended(left)
        self.say(f"{name} was dropped, the others go on: {error}")

    def _ended(self, left: int) -> None:
        self.ended, self.total = self.ended + 1, self.total - left
        self.bar.update(self.task, total=self.total)


def _best(trainee: Trainee) -> str:
    """An adapter's best score on dev so far."""
    value = trainee.kept.best.get(trainee.options.metric or "")
    return "" if value is None else f", best {value:.3f}"
