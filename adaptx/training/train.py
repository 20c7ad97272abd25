"""Training one adapter: one Accelerate loop, to be read from top to bottom.

Dimensions: B rows of a micro-batch, S tokens, L labels.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from adaptx.adapters import own_model
from adaptx.adapters.adapter import Adapter
from adaptx.adapters.own_model import Full
from adaptx.data.large import IndexedExamples
from adaptx.data.streams import Columns
from adaptx.encoder.encoder import Encoder
from adaptx.errors import OptionError, TrainingInterrupted, choices
from adaptx.evaluation.metrics import task_scores
from adaptx.machine import flags, has_bf16
from adaptx.tasks import Classification, Task
from adaptx.training.average import Average
from adaptx.training.checkpoint import Checkpoint, check_interval
from adaptx.training.display import Display
from adaptx.training.distributed import check_distribution, check_launch, fsdp_hidden, held, place
from adaptx.training.optimizing import optimizer_and_schedule
from adaptx.training.probe import begin_heads, check_probe_first, solve_head
from adaptx.training.record import Job, Kept
from adaptx.training.resuming import Progress, Resuming, find_checkpoint
from adaptx.training.routed import Routed
from adaptx.training.rows import Data, EncodedRows, open_data, training_rows
from adaptx.training.runlog import RunLog, check_run
from adaptx.training.scoring import answers, end_epoch
from adaptx.training.settings import Settings
from adaptx.training.stopping import SIGNALS, Stopping

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftConfig

PRECISIONS = ("no", "bf16", "fp16", "auto")


def train(
    encoder: Encoder,
    task: Task,
    config: PeftConfig | Full | None,
    *,
    name: str,
    train: Data,
    dev: Data | None = None,
    language: str | None = None,
    text_column: str | None = None,
    other_column: str | None = None,
    label_column: str | None = None,
    precision: str | None = None,
    checkpointing: bool = False,
    fast: bool = True,
    accelerator: Accelerator | None = None,
    run: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: float = 300.0,
    trackers: Sequence[str] = (),
    **settings: Any,
) -> Adapter:
    """Train an adapter for `task` on a frozen encoder; returns the best on dev.

    `config` is a peft.LoraConfig, or another of PEFT's; Full() trains every weight of a copy of the
    encoder; None is a probe, a head alone: solved for classification, trained for other tasks.
    `train` and `dev` are files (see adaptx.data.read) or records of the task's; without `dev` the
    last epoch is kept. What is kept are averaged weights (adaptx.training.average). `precision` is
    "no", "bf16" or "fp16" for the forward pass, or "auto": bf16 where the device multiplies in it,
    else "no"; None takes what `accelerate launch` says.
    `checkpointing` recomputes activations to save memory. `fast` takes the fast path where it fits
    (adaptx.training.fast); without it the encoder's own modules run, and nothing is fused. `run`
    is a new folder for a log (see adaptx.training.runs), and `trackers` are names that Accelerate
    knows, such as "tensorboard"; an `accelerator` of your own brings its own. `settings` are those
    of `Settings`.

    A run writes a checkpoint at most `checkpoint_every` seconds after the one before, and when
    SIGTERM or SIGINT come: then it raises TrainingInterrupted. `resume` goes on from the newest
    checkpoint of `run`, to the same weights as if nothing had happened, and begins where there is
    none; OptionError for a checkpoint of other data, another encoder or other settings.

    Everything is checked before any work: raises DataError, SiteError or OptionError. Raises
    TrainingDiverged when the loss becomes NaN or infinite, with the last good adapter.
    """
    options = Settings.of(settings)
    run = check_run(run, trackers, accelerator, resume)
    columns = Columns(text_column, label_column, other_column)
    train_rows = open_data(train, task, columns)
    dev_rows = open_data(dev, task, columns) if dev is not None else []
    task = task.fit(train_rows, dev_rows)
    options = options.for_task(task, dev is not None)
    check_asked(task, config, train_rows, options, checkpoint_every)
    adapter = Adapter.new(
        encoder,
        task,
        config,
        name=name,
        language=language,
        max_length=options.max_length,
        seed=options.seed,
    )
    accelerator = accelerator or accelerator_for(precision, run, trackers)
    check_distribution(accelerator)
    place(encoder, adapter, accelerator)
    encoded = training_rows(encoder, adapter, task, train_rows)
    held_out = EncodedRows.of(encoder, adapter, task, dev_rows)
    job = Job(encoder, adapter, task, options, accelerator, encoded, held_out)
    own_model.total_steps(adapter.config, options.epochs * len(job.plan()))
    found = find_checkpoint(job, run) if resume and run is not None else None
    with RunLog(run, accelerator, job.about(config), found) as log:
        if job.solved:
            with held(encoder, accelerator) as working:
                history = _probe(replace(job, encoder=working))
            log.epoch(history[-1], best=True)
            job.record(history)
        else:
            in_steps(job, log, run, found, checkpoint_every, checkpointing=checkpointing, fast=fast)
    accelerator.wait_for_everyone()
    return adapter.to(encoder.device).requires_grad_(False).eval()


def check_asked(
    task: Task,
    config: PeftConfig | Full | None,
    rows: Sequence[Any],
    options: Settings,
    checkpoint_every: float,
) -> None:
    """Raise OptionError for what `train` refuses whatever the encoder: nothing is loaded for it."""
    check_interval(checkpoint_every)
    check_probe_first(options, task)
    if config is None and not task.has_head:
        raise OptionError(f"The task {task.kind} has no head, so a probe has nothing to learn.")
    solved = options.probe_first or (config is None and isinstance(task, Classification))
    if solved and isinstance(rows, IndexedExamples):
        raise OptionError(
            "A probe is solved on all rows at once, and this file is larger than memory: take a "
            "part of it, or train an adapter without a probe first."
        )


def in_steps(
    job: Job,
    log: RunLog,
    run: Path | None,
    found: Checkpoint | None,
    checkpoint_every: float,
    *,
    checkpointing: bool,
    fast: bool,
) -> None:
    """Train the job's adapter in place, from its beginning or from the checkpoint that was found.

    Raises TrainingDiverged or TrainingInterrupted.
    """
    accelerator, adapter = job.accelerator, job.adapter
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    prepared = [(its, len(its)) for its in (accelerator._models, accelerator._optimizers)]
    try:
        with (
            held(job.encoder, accelerator, dtype if adapter.sites and fast else None) as working,
            working.checkpointing(adapter.model) if checkpointing else nullcontext(),
        ):
            if job.options.probe_first and found is None:
                groups = [[replace(m, encoder=working) for m in own] for own in job.classified()]
                begin_heads(groups, fast=fast, dtype=dtype, silent=not accelerator.is_main_process)
            routed = Routed(working, adapter, fast=fast, dtype=dtype)
            _loop(replace(job, encoder=working), log, routed, run, checkpoint_every, found)
    finally:  # else an accelerator of the caller's would keep each training's
        for its, before in prepared:
            del its[before:]


def _loop(
    job: Job,
    log: RunLog,
    routed: Routed,
    run: Path | None,
    checkpoint_every: float,
    found: Checkpoint | None,
) -> None:
    """Train the adapter in place, to its best epoch on dev, and record how it went."""
    from accelerate.utils import set_seed

    options, accelerator, adapter = job.options, job.accelerator, job.adapter
    set_seed(options.seed + accelerator.process_index)  # dropout: each process draws its own
    plan = job.plan()
    total = options.epochs * len(plan)
    optimizer, schedule = optimizer_and_schedule(adapter, options, total)
    model, optimizer = accelerator.prepare(routed, optimizer)

    # `accelerate launch --gradient_accumulation_steps` makes backward() divide; `accumulate` is
    # what counts here, and an optimizer step's loss is the global batch's mean whatever was said.
    undivided = accelerator.num_processes * accelerator.gradient_accumulation_steps
    averaged = options.average and not own_model.allocates(adapter.model)
    average = Average(adapter.trainable() if averaged else [])
    kept = Kept(job)
    resuming = Resuming(job, run, checkpoint_every, optimizer, schedule, average, kept)
    at = resuming.restore(found) if found else Progress()
    with (
        Display(accelerator, total, options.metric) as display,
        Stopping(run is not None) as stopping,
    ):
        if routed.why_plain:
            display.say(f"Not on the fast path: {routed.why_plain}.")
        if found:
            display.resumed(found.folder, at.step)
        for epoch in range(at.epoch, options.epochs + 1):
            model.train()
            started = time.perf_counter()
            for step in islice(plan.steps(epoch), at.place, None):
                at.step, at.place = at.step + 1, at.place + 1
                # The loss, tokens, whether a checkpoint is due, signals: alike for all processes.
                seen = torch.zeros(5, device=accelerator.device)
                for i, rows in enumerate(step.micro_batches):
                    last = i == len(step.micro_batches) - 1
                    with nullcontext() if last else accelerator.no_sync(model):
                        # The mean over the *global* batch, whoever holds its rows: DDP averages
                        # the processes' gradients, so each counts its own rows that many times.
                        total_loss, tokens = job.loss_sum(model, rows, epoch)
                        micro = total_loss / step.rows
                        accelerator.backward(micro * undivided)
                        seen[0] += micro.detach()
                        seen[1] += tokens
                seen[2:] = torch.tensor([resuming.due, *(stopping.signal == s for s in SIGNALS)])
                loss_value, tokens, due, *signals = accelerator.reduce(seen, "sum").tolist()
                norm = accelerator.clip_grad_norm_(adapter.trainable(), options.clip or math.inf)
                scaled = accelerator.scaler is not None  # fp16's scaler skips an overflow itself
                gradient = float(norm) if norm is not None else math.nan
                unsure = scaled or norm is None
                kept.check(loss_value, None if unsure else gradient, at.step, epoch, step.all_rows)
                log.step(
                    at.step,
                    epoch,
                    loss=loss_value,
                    lr=schedule.get_last_lr()[0],
                    grad_norm=gradient,
                    tokens=int(tokens),
                )
                optimizer.step()
                own_model.after_backward(adapter.model, at.step)
                average.update()
                schedule.step()
                optimizer.zero_grad()
                at.losses.append(loss_value)
                display.step(epoch, loss_value, int(tokens))
                if due or any(signals):
                    resuming.save(at)
                _stop(signals, at, run)
            try:  # not by DDP, which waits for processes that have no rows
                entry, best, tired = end_epoch(
                    job,
                    accelerator.unwrap_model(model),
                    kept,
                    average,
                    log,
                    epoch=epoch,
                    step=at.step,
                    losses=at.losses,
                    started=started,
                    between=partial(_stop_where_asked, accelerator, stopping, at, run),
                )
            except TrainingInterrupted:  # as it was before: resumed, it scores the epoch anew
                resuming.save(at)
                raise
            display.epoch(entry, best)
            at = Progress(at.step, epoch + 1)
            if tired:
                display.say(f"No better dev {options.metric} for {options.patience} epochs: done.")
                break
        resuming.finish(at.step)
    kept.restore()


def _stop_where_asked(
    accelerator: Accelerator, stopping: Stopping, at: Progress, run: Path | None
) -> None:
    """Raise TrainingInterrupted where a process has got a signal; every process calls it."""
    if run is not None:
        asked = torch.tensor([float(stopping.signal == s) for s in SIGNALS])
        _stop(accelerator.reduce(asked.to(accelerator.device), "sum").tolist(), at, run)


def _stop(signals: Sequence[float], at: Progress, run: Path | None) -> None:
    """Raise TrainingInterrupted where processes have got signals, so many of each of SIGNALS."""
    if run is not None and any(signals):
        raise TrainingInterrupted(SIGNALS[int(signals[0] == 0)], at.step, run)


def _probe(job: Job) -> list[dict[str, Any]]:
    """Fit the head alone; every process does the same small sum."""
    strength, x_dev = solve_head([job])
    entry: dict[str, Any] = {"epoch": 1, "strength": strength}
    if x_dev is not None and job.adapter.head is not None:
        dev = cast(EncodedRows, job.dev)
        with torch.no_grad():
            logits = job.adapter.head(torch.from_numpy(x_dev).to(job.accelerator.device)).cpu()
        entry["dev_loss"] = float(job.task.losses(logits, torch.from_numpy(dev.targets)).mean())
        entry |= task_scores(job.task, dev.records, answers(dev, list(logits.numpy())))
    return [entry]


def accelerator_for(
    precision: str | None, run: Path | None = None, trackers: Sequence[str] = ()
) -> Accelerator:
    """Accelerate's Accelerator; OptionError where it can't be made, or not used here."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if precision is not None and precision not in PRECISIONS:
        raise OptionError(f"precision={precision!r} is none of {choices(PRECISIONS)}.")
    fast = _multiplies_in_bf16()
    if precision == "auto":
        precision = "bf16" if fast else "no"
    check_launch()
    AcceleratorState._reset_state()  # what an earlier training in this process asked for
    try:
        with fsdp_hidden():
            accelerator = Accelerator(
                mixed_precision=precision, log_with=list(trackers) or None, project_dir=run
            )
    except ValueError as error:
        asked = precision is not None and "mixed precision" in str(error)
        what = f"precision={precision!r}" if asked else "to begin"
        raise OptionError(f"Accelerate refuses {what}: {error}") from error
    check_distribution(accelerator)
    device = accelerator.device.type
    known = device == "cuda" or (device == "cpu" and flags() is not None)
    if precision == "bf16" and known and not fast and accelerator.is_main_process:
        warnings.warn(
            "This device doesn't multiply in bf16, and takes several times as long in it as in "
            'fp32: precision "auto" chooses the faster.',
            stacklevel=3,
        )
    return accelerator


def _multiplies_in_bf16() -> bool:
    """Whether the device that Accelerate will take has instructions for bf16: without them, fp32 is
    several times as fast.
    """
    from accelerate.utils import parse_flag_from_env

    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return has_bf16()
