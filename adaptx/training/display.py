"""What a person sees while an adapter trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from adaptx.evaluation.metrics import score_line


class Display:
    """One display, on the main process: a bar on a terminal, and a line for each epoch."""

    def __init__(self, accelerator: Accelerator, total: int):
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

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def resumed(self, checkpoint: Path, step: int) -> None:
        """Say that a training goes on, and where."""
        self.say(f"Going on after step {step}, from {checkpoint}.")
        self.bar.update(self.task, completed=step)

    def step(self, epoch: int, loss: float) -> None:
        """Move the bar by one optimizer step."""
        self.bar.update(self.task, advance=1, description=f"epoch {epoch}  loss {loss:.4f}")

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

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
