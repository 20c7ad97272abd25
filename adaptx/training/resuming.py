"""What a training's checkpoint holds, and how a training goes on from one as if never cut off.

Weights, AdamW's moments, the schedule, the averages, the best epoch, the place in the epoch, and
each process's random state. The order of rows needs none of it: it depends on the seed and the
epoch (adaptx.training.plan).
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from adaptx import storage
from adaptx.adapters import own_model
from adaptx.errors import FolderError, OptionError, choices
from adaptx.training.average import Average
from adaptx.training.checkpoint import Checkpoint, newest_checkpoint, write_checkpoint
from adaptx.training.processes import by_the_first, gathered
from adaptx.training.record import Job, Kept
from adaptx.training.rows import EncodedRows, IndexedRows, MixedRows, Rows

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim.lr_scheduler import LRScheduler


@dataclass
class Progress:
    """How far a training is: `place` steps of `epoch` are done, with these losses."""

    step: int = 0
    epoch: int = 1
    place: int = 0
    losses: list[float] = field(default_factory=list)


class Resuming:
    """A run's checkpoints; without a run's folder there are none."""

    def __init__(
        self,
        job: Job,
        run: Path | None,
        every: float,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler,
        average: Average,
        kept: Kept,
    ):
        self.job, self.run, self.every = job, run, every
        self.optimizer, self.schedule, self.average, self.kept = optimizer, schedule, average, kept
        self.saved = time.perf_counter()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint was written long enough ago."""
        return self.run is not None and time.perf_counter() - self.saved >= self.every

    def save(self, progress: Progress) -> None:
        """Write a checkpoint. Every process calls it, between two steps."""
        if self.run is None:
            return
        tensors = {
            **_named("weights", self.job.adapter.weights()),
            **_named("average", _numbered(self.average.averages)),
        }
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= _named(f"optimizer.{i}", state)
        self._write(progress, tensors)

    def finish(self, step: int) -> None:
        """Write the last checkpoint, from which the best epoch comes back without a step. Every
        process calls it, after the last epoch.
        """
        if self.run is not None:
            self._write(Progress(step, self.job.options.epochs + 1), {})

    def _write(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        accelerator = self.job.accelerator
        random = gathered(accelerator, _random_state(accelerator.device))

        def write() -> None:
            assert self.run is not None
            held = {
                **tensors,
                **_named("best", self.kept.weights),
                **{f"random.{i}.{k}": v for i, s in enumerate(random) for k, v in s.items()},
            }
            scaler = accelerator.scaler
            state = {
                "about": identity(self.job),
                "progress": asdict(progress),
                "schedule": self.schedule.state_dict(),
                "averaged": self.average.steps,
                "best": self.kept.best,
                "history": self.kept.history,
                "seconds": time.perf_counter() - self.kept.started,
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            write_checkpoint(self.run, progress.step, state, held)

        by_the_first(accelerator, write)
        self.saved = time.perf_counter()

    def restore(self, found: Checkpoint) -> Progress:
        """Put everything back as it was; where the training is then."""
        tensors, state, accelerator = found.tensors, found.state, self.job.accelerator
        device = accelerator.device
        self.job.adapter.load_state_dict(_under("weights", tensors), strict=False)
        self.kept.weights = _under("best", tensors)
        self.kept.best, self.kept.history = state["best"], state["history"]
        self.kept.started = time.perf_counter() - state["seconds"]
        config = self.job.adapter.config
        self.kept.config = dict(vars(config)) if config is not None else {}
        averages = _under("average", tensors)
        self.average.averages = [averages[str(i)].to(device) for i in range(len(averages))]
        self.average.steps = state["averaged"]
        held = self.optimizer.state_dict()
        for i in sorted({name.split(".")[1] for name in tensors if name.startswith("optimizer.")}):
            held["state"][int(i)] = _under(f"optimizer.{i}", tensors)
        self.optimizer.load_state_dict(held)
        self.schedule.load_state_dict(state["schedule"])
        lrs = self.schedule.get_last_lr()
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        _set_random_state(_under(f"random.{accelerator.process_index}", tensors), device)
        return Progress(**state["progress"])


def find_checkpoint(job: Job, run: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run, which must be of just this training.

    Every process calls it. Raises OptionError for other data, another encoder, other settings, with
    what differs, and where the processes don't find the same; FolderError where none is whole.
    """
    found = _newest_of_all(run, job.accelerator)
    if found is None:
        return None
    if own_model.allocates(job.adapter.model):
        raise OptionError(
            f"{job.adapter.facts.method} keeps scores of its own, which no checkpoint has: train "
            f"it anew, in another run's folder."
        )
    here, there = identity(job), found.state["about"]
    differing = [
        f"{name} was {there.get(name)!r} and is {here.get(name)!r}"
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name)
    ]
    if differing:
        raise OptionError(
            f"{found.folder} is of another training: {'; '.join(differing)}. Resume with what it "
            f"was begun with, or choose another run's folder."
        )
    return found


def _newest_of_all(run: Path, accelerator: Accelerator) -> Checkpoint | None:
    """The newest whole checkpoint, which every process must have found."""
    found, damaged = None, None
    try:
        found = newest_checkpoint(run)
    except FolderError as error:
        damaged = error
    seen = storage.sha256(found.folder / storage.MANIFEST) if found else str(damaged)
    everywhere = gathered(accelerator, (found.step if found else 0, seen))
    if damaged is not None:
        raise damaged
    if len(set(everywhere)) > 1:
        steps = choices(step or "none" for step, _ in everywhere)
        raise OptionError(
            f"The processes find different checkpoints in {run.absolute()} (after step: {steps}). "
            f"The run's folder must be one that all machines share: put --run on a shared disk, or "
            f"copy the folder to each machine."
        )
    return found


def identity(job: Job) -> dict[str, Any]:
    """What must be the same for a training to go on: flat, each with a name for people."""
    facts, accelerator = job.adapter.facts, job.accelerator
    config: Any = job.adapter.config
    plain = vars(config) if config is not None else {}  # a probe has none
    values = config.to_dict() if hasattr(config, "to_dict") else plain
    found = {
        "the encoder": facts.fingerprint,
        "the task": facts.task,
        "the method": facts.method,
        "its configuration": hashlib.sha256(
            json.dumps(values, sort_keys=True, default=_plain).encode()
        ).hexdigest()[:12],
        "the training data": _digest(job.train),
        "the dev data": _digest(job.dev),
        "precision": accelerator.mixed_precision,
        "the number of processes": accelerator.num_processes,
        **job.settings,
    }
    return dict(json.loads(json.dumps(found)))  # as it comes back from a file


def _digest(rows: Rows) -> str:
    if isinstance(rows, MixedRows):
        return "; ".join(map(_digest, rows.each))
    if isinstance(rows, IndexedRows):
        return f"{len(rows)} rows, {rows.examples.digest(rows.adapter.prefix)[:12]}"
    assert isinstance(rows, EncodedRows)
    digest = hashlib.sha256()
    for target in rows.targets:
        digest.update(np.asarray(target).tobytes())
    for ids in rows.ids:
        digest.update(np.array([len(ids), *ids], np.int64).tobytes())
    return f"{len(rows)} rows, {digest.hexdigest()[:12]}"


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    return found | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" not in state:
        warnings.warn(
            "The run was begun without a GPU: on this one, dropout begins anew, and the weights "
            "won't be those of a training that wasn't cut off.",
            stacklevel=2,
        )
    elif device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def _numbered(tensors: list[Tensor]) -> dict[str, Tensor]:
    return {str(i): tensor for i, tensor in enumerate(tensors)}


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
