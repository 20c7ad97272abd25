"""What a training writes while it goes on: its run's folder, and Accelerate's trackers."""

from __future__ import annotations

import json
import math
import os
import platform
import socket
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from filelock import FileLock, Timeout

from adaptx import storage
from adaptx.errors import (
    FolderError,
    OptionError,
    OutputExists,
    TrainingDiverged,
    TrainingInterrupted,
    choices,
)
from adaptx.training.checkpoint import Checkpoint
from adaptx.training.processes import by_the_first
from adaptx.training.runs import (
    CHECKPOINTS,
    FACTS,
    LOCK,
    LOG,
    Run,
    now,
    read_run,
    whole_entries,
    write_run,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

PACKAGES = ("adaptx", "torch", "transformers", "peft", "accelerate")
NOT_DEVS = ("epoch", "loss", "seconds", "strength")  # an epoch's entries that no dev set gave
UNSAID = ("peft_version", "megatron_core")  # in every configuration, and of no meaning here


def check_run(
    run: str | Path | None,
    trackers: Sequence[str],
    accelerator: Accelerator | None,
    resume: bool = False,
) -> Path | None:
    """The run's folder, after it and the trackers have been checked; OptionError, OutputExists."""
    if isinstance(trackers, str):
        raise OptionError(f"trackers={trackers!r} must be a list of names, not one text.")
    if trackers and accelerator is not None:
        raise OptionError(
            "An accelerator of your own brings its trackers along: give it log_with=…, and leave "
            "trackers out."
        )
    if trackers and run is None:
        raise OptionError(f"trackers={list(trackers)} need a folder: give run='runs/NAME' too.")
    if trackers:
        from accelerate.tracking import get_available_trackers
        from accelerate.utils import LoggerType

        known = [name for name in LoggerType.list() if name != "all"]
        there = [str(tracker) for tracker in get_available_trackers()]
        if unknown := [name for name in trackers if name not in known]:
            raise OptionError(f"Unknown tracker {choices(unknown)}; there is {', '.join(known)}.")
        if missing := [name for name in trackers if name not in there]:
            raise OptionError(
                f"The tracker {missing[0]!r} needs a package that isn't installed: "
                f"pip install {missing[0]}. Installed: {choices(there) or 'none'}."
            )
    if resume and run is None:
        raise OptionError("Which run is to be resumed? Give its folder, run='runs/NAME'.")
    # What a killed run may have left: the lock comes first, and run.json is made anew.
    if resume and run and any((Path(run) / name).exists() for name in (FACTS, LOCK, CHECKPOINTS)):
        return Path(run)
    if run is not None and (Path(run) / FACTS).is_file():
        state = read_run(run).state
        raise OutputExists(
            f"{run} has a run already, which is {state}: "
            f"{'' if state == 'done' else 'go on with it by --resume (resume=True), or '}"
            f"choose another folder."
        )
    return None if run is None else storage.check_output(run, overwrite=False)


class RunLog:
    """Writes a run's folder (none when it is None) and the accelerator's trackers.

    A context manager: leaving it marks the run done, or failed, or diverged. Every process makes
    one and calls it alike; the first one writes. `about` is what `Run` has of the training:
    name, encoder, method, task, config, settings, precision, processes, train_rows, dev_rows.
    A run that is there goes on after `found`, its checkpoint.
    """

    def __init__(
        self,
        folder: Path | None,
        accelerator: Accelerator,
        about: Mapping[str, Any],
        found: Checkpoint | None = None,
    ):
        self.accelerator = accelerator
        self.run = Run(
            **about,
            state="running",
            versions=_versions(),
            host=socket.gethostname(),
            pid=os.getpid(),
            started=now(),
            folder=folder or Path(),
        )
        self.writes = folder is not None and accelerator.is_main_process
        self.own_trackers = bool(accelerator.log_with) and not accelerator.trackers
        self.file: TextIO | None = None
        self.lock = FileLock(self.run.folder / LOCK)
        self.started = time.perf_counter()
        self.goes_on, self.last_step = found is not None, 0
        if found is not None:
            epochs, best = len(found.state["history"]), found.state["best"]
            scored = best if "dev_loss" in best else None
            self.last_step, self.run = found.step, replace(self.run, epochs=epochs, best=scored)

    def __enter__(self) -> RunLog:
        self.accelerator.wait_for_everyone()  # each process has seen that the folder is free
        try:
            by_the_first(self.accelerator, self._open)
            if self.own_trackers:
                run = self.run
                known = {**run.config, **run.settings, "encoder": run.encoder, "method": run.method}
                plain = {k: v for k, v in known.items() if isinstance(v, (bool, int, float, str))}
                self.accelerator.init_trackers(run.name, config=plain)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _open(self) -> None:
        run = self.run
        if self.writes:
            try:
                run.folder.mkdir(parents=True, exist_ok=True)
                self.lock.acquire(timeout=0)
                if any((run.folder / name).is_file() for name in (FACTS, LOG)):
                    self._cut_log()
                self.file = (run.folder / LOG).open("a", encoding="utf-8")
                write_run(self.run)
            except Timeout:
                raise FolderError(
                    f"The run {run.folder} is being trained by another process: let it end first."
                ) from None
            except OSError as error:
                raise FolderError(
                    f"The run's folder {run.folder} can't be written: {error}."
                ) from None

    def _cut_log(self) -> None:
        """Leave what was logged up to where the run goes on."""
        step, epochs = self.last_step, self.run.epochs
        started = self._begun(step)
        entries = whole_entries(self.run.folder / LOG)
        kept = [e for e in entries if e["kind"] == "step" and e["step"] <= step]
        kept += [e for e in entries if e["kind"] == "epoch" and e["epoch"] <= epochs]
        kept.sort(key=lambda e: (e["step"], e["kind"] == "epoch"))
        part = self.run.folder / f".{LOG}.part"
        lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept]
        part.write_text("".join(lines), encoding="utf-8")
        part.replace(self.run.folder / LOG)
        if self.goes_on:
            self.run = replace(self.run, started=started)
            self.started -= max([0.0, *(e["seconds"] for e in kept if e["kind"] == "step")])

    def _begun(self, step: int) -> str:
        """When the run was begun. A run.json that can't be read is made anew where there is a
        checkpoint to go on from, or nothing in it; else it may be somebody's, and FolderError.
        """
        facts = self.run.folder / FACTS
        try:
            return read_run(self.run.folder).started
        except FolderError:
            if not step and facts.is_file() and facts.stat().st_size:
                raise
            warnings.warn(f"{facts} can't be read, and is made anew.", stacklevel=2)
            return self.run.started

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        state = "done" if error is None else "failed"
        if isinstance(error, TrainingDiverged):
            state = "diverged"
        if isinstance(error, TrainingInterrupted):
            state = "interrupted"
        said = None if error is None else f"{type(error).__name__}: {error}"
        self._line("end", {"state": state, "error": said})
        self._state(state=state, ended=now(), error=said)
        if self.file is not None:
            self.file.close()
        self.lock.release()  # where it wasn't taken, that does nothing
        if self.own_trackers:  # not end_training(): it would also part the processes
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator.trackers.clear()

    def step(
        self, step: int, epoch: int, *, loss: float, lr: float, grad_norm: float, tokens: int
    ) -> None:
        """Log one optimizer step: the global batch's mean loss, and its tokens without padding."""
        values = {"loss": loss, "lr": lr, "grad_norm": grad_norm, "tokens": tokens}
        seconds = round(time.perf_counter() - self.started, 3)
        self._line("step", {"step": step, "epoch": epoch, **values, "seconds": seconds})
        self._track({f"train/{name}": value for name, value in values.items()}, step)
        self.last_step = step

    def epoch(self, entry: Mapping[str, Any], best: bool) -> None:
        """Log a finished epoch: its number, loss and dev's scores, and whether it is the best."""
        self._line("epoch", {"step": self.last_step, **entry, "best": best})
        scored = best and "dev_loss" in entry
        self._state(epochs=entry["epoch"], best=dict(entry) if scored else self.run.best)
        values = {
            f"dev/{name.removeprefix('dev_')}": value
            for name, value in entry.items()
            if name not in NOT_DEVS and isinstance(value, (int, float))
        }
        self._track(values, self.last_step)

    def _track(self, values: dict[str, Any], step: int) -> None:
        if self.accelerator.trackers:
            self.accelerator.log(values, step=step)

    def _line(self, kind: str, entry: Mapping[str, Any]) -> None:
        if self.file is None:
            return
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in entry.items()
        }
        try:
            self.file.write(json.dumps({"kind": kind, **finite}, ensure_ascii=False) + "\n")
            self.file.flush()
        except OSError as error:
            self._give_up(error)

    def _state(self, **changes: Any) -> None:
        self.run = replace(
            self.run, seconds=round(time.perf_counter() - self.started, 1), **changes
        )
        if self.file is None:
            return
        try:
            write_run(self.run)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """A log that can't be written costs the log, not the training."""
        warnings.warn(f"{self.run.folder} can't be written any more: {error}.", stacklevel=3)
        self.file = None


def method_config(config: Any) -> dict[str, Any]:
    """A PEFT configuration for people: its numbers, its names, and what is switched on."""
    if config is None:
        return {}
    values = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    plain = {
        name: value
        for name, value in values.items()
        if isinstance(value, (bool, int, float, str)) and value is not False and name not in UNSAID
    }
    targets = values.get("target_modules")
    named = targets if isinstance(targets, str) or targets is None else ", ".join(sorted(targets))
    return {**plain, "target_modules": named}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = getattr(sys.modules.get(name), "__version__", "unknown")
    return found
