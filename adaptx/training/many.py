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
from adaptx.errors import DataError, OptionError, TrainingDiverged
from adaptx.training.display import ManyDisplay
from adaptx.training.distributed import held
from adaptx.training.many_file import check_names
from adaptx.training.member import Member, Trainee
from adaptx.training.probe import solve_head
from adaptx.training.record import Job
from adaptx.training.routed import Routed
from adaptx.training.runlog import check_run

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Trained:
    """What came of a job: adapters by name, in the order they were asked for, and what failed."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    failed: dict[str, TrainingDiverged] = field(default_factory=dict)


def train_many(
    encoder: Encoder,
    members: Sequence[Member],
    *,
    slots: int = 8,
    precision: str | None = None,
    fast: bool = True,
    runs: str | Path | None = None,
    accelerator: Accelerator | None = None,
    done: Callable[[Adapter], None] | None = None,
) -> Trained:
    """Train members together, at most `slots` at a time, in one process.

    `precision` is "no", "bf16" or "auto"; `runs` is a folder for a run of each; `done` is given
    each adapter as soon as it is finished. A member that diverges is dropped, and the others go on.
    Raises OptionError, before any training, that says of each member what is wrong with it.
    """
    from adaptx.training.train import accelerator_for

    names = [member.name for member in members]
    check_names(names)
    if not members or slots < 1:
        raise OptionError(f"{len(members)} adapters in {slots} slots: give at least one of each.")
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
    logs = [check_run(Path(runs) / name, (), None) if runs else None for name in names]
    configs = [member.config for member in members]
    first = [job for job in jobs if job.options.probe_first]
    for job in track(first, "Probes' heads", console=Console(stderr=True), disable=not first):
        solve_head([job], job.options.metric or "")
    with held(encoder, accelerator, dtype if fast else None) as working:
        queue = deque(zip(jobs, configs, logs, strict=True))
        found = _loop(working, queue, slots, dtype, fast, done)
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


def _loop(
    encoder: Encoder,
    queue: deque[tuple[Job, object, Path | None]],
    slots: int,
    dtype: torch.dtype,
    fast: bool,
    done: Callable[[Adapter], None] | None,
) -> Trained:
    found, running = Trained(), list[Trainee]()
    total = sum(
        job.options.epochs * -(-len(job.train) // job.options.batch_size) for job, _, _ in queue
    )
    said: set[str | None] = {None}
    with ManyDisplay(queue[0][0].accelerator, len(queue), total) as display:
        try:
            while queue or running:
                while queue and len(running) < slots:
                    job, config, run = queue.popleft()
                    job.adapter.to(encoder.device)
                    routed = Routed(encoder, job.adapter, fast=fast, dtype=dtype)
                    if routed.why_plain not in said:  # then all that run with it aren't, either
                        display.say(f"Not on the fast path: {routed.why_plain}.")
                        said.add(routed.why_plain)
                    running.append(Trainee(job, config, routed.train(), run))
                started = time.perf_counter()
                stepped = _shared_step(encoder, running, dtype)
                leaving, ended = [], []
                for trainee, (loss, tokens) in zip(running, stepped, strict=True):
                    name = trainee.job.adapter.name
                    try:
                        finished = trainee.step(loss, tokens)
                    except TrainingDiverged as error:
                        trainee.fail(error)
                        found.failed[name] = error
                        leaving.append(trainee)
                        display.failed(name, error)
                    else:
                        if finished:
                            found.adapters[name] = trainee.finish()
                            leaving.append(trainee)
                            ended.append(found.adapters[name])
                            display.finished(name, trainee.kept.best)
                running = [trainee for trainee in running if trainee not in leaving]
                if done is not None:
                    for adapter in ended:
                        done(adapter)
                seconds = time.perf_counter() - started
                display.shared_step(running, sum(tokens for _, tokens in stepped), seconds)
        except BaseException as error:
            for trainee in running:
                trainee.fail(error)
            raise
    return found


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
