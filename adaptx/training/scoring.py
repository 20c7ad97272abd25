"""What ends an epoch: the averaged weights are scored on dev, and kept if they are the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptx.data.encode import Batch
from adaptx.evaluation.metrics import perplexity, task_scores
from adaptx.tasks import Task
from adaptx.tasks.base import TOKENS
from adaptx.training.average import Average
from adaptx.training.processes import gathered
from adaptx.training.rows import EncodedRows
from adaptx.training.runlog import RunLog

if TYPE_CHECKING:
    from adaptx.training.record import Job, Kept


def end_epoch(
    job: Job,
    model: nn.Module,
    kept: Kept,
    average: Average,
    log: RunLog,
    *,
    epoch: int,
    step: int,
    losses: Sequence[float],
    started: float,
    between: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], bool, bool]:
    """Score and log an epoch that ended after optimizer step `step`.

    Its entry, whether it is the best so far, and whether patience is at its end. Raises
    TrainingDiverged. `model` and `between` as in `Job.dev_scores`; `started` is a
    time.perf_counter().
    """
    entry: dict[str, Any] = {
        "epoch": epoch,
        "loss": float(np.mean(losses)),
        "seconds": round(time.perf_counter() - started, 2),
    }
    # The last step's weights have been through no loss yet.
    if not job.adapter.is_finite():
        raise kept.diverged("a weight isn't finite after it", step, epoch)
    with average.applied():
        if len(job.dev):
            entry |= job.dev_scores(model, between)
        sound = math.isfinite(entry.get("dev_loss", 0.0))
        best = sound and kept.offer(entry)
    if not sound:
        raise kept.diverged(f"the dev loss is {entry['dev_loss']}", step, epoch)
    log.epoch(entry, best)
    patience, waited = job.options.patience, epoch - kept.best["epoch"]
    return entry, best, bool(patience and len(job.dev) and waited >= patience)


@torch.no_grad()
def dev_scores(
    job: Job,
    model: Callable[[Tensor, Tensor], Tensor],
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Loss and scores on dev; the processes share the rows and all get the answer.

    `model` gives outputs `[B, L]`, or `[B, S, L]`, for ids and mask int64 `[B, S]`. `between` is
    called before each batch, as often by each process; what it raises ends the scoring.
    """
    accelerator, dev, task = job.accelerator, job.dev, job.task
    assert isinstance(dev, EncodedRows)  # of several tasks, each is scored by itself
    # As many rows, and so forward passes, for each process, some of them twice: FSDP waits in each.
    share = -(-len(dev) // accelerator.num_processes)
    mine = (np.arange(share) * accelerator.num_processes + accelerator.process_index) % len(dev)
    mine = mine[np.argsort(-dev.lengths[mine], kind="stable")]  # of like length: less padding
    at_once = rows_at_once(job, dev)
    found: list[tuple[int, float, float, list[np.ndarray]]] = []
    for start in range(0, share, at_once):
        between()
        rows = mine[start : start + at_once]
        batch, targets, _ = dev.batch(rows)
        outputs = model(job.on_device(batch.input_ids), job.on_device(batch.attention_mask))
        losses = job.losses(outputs, job.on_device(targets)).float().tolist()
        weights = task.weights(targets).tolist()
        each = unpadded(task, outputs.float().cpu().numpy(), batch) if task.answers else []
        ends = np.cumsum(dev.counts[rows])
        for i, (row, end) in enumerate(zip(rows.tolist(), ends, strict=True)):
            found.append((row, losses[i], weights[i], each[end - dev.counts[row] : end]))
    by_row = {one[0]: one[1:] for its in gathered(accelerator, found) for one in its}
    every = [by_row[row] for row in range(len(dev))]
    loss = float(np.average([loss for loss, _, _ in every], weights=[w for _, w, _ in every]))
    if not task.answers:
        return {"dev_loss": loss, "perplexity": perplexity(loss)}
    flat = [output for _, _, outputs in every for output in outputs]
    return {"dev_loss": loss, **task_scores(task, dev.records, answers(dev, flat))}


def rows_at_once(job: Job, rows: EncodedRows) -> int:
    """How many rows a forward pass takes where no gradients are kept: twice a micro-batch's."""
    options = job.options
    found = 2 * max(1, options.batch_size // (options.accumulate * job.accelerator.num_processes))
    if options.micro_tokens:
        found = min(found, 2 * options.micro_tokens // int(rows.lengths.max()))
    return max(1, found)


def unpadded(task: Task, outputs: np.ndarray, batch: Batch) -> list[np.ndarray]:
    """The outputs of each window of a batch, of its own tokens."""
    if task.pooling != TOKENS:
        return list(outputs)
    lengths = batch.attention_mask.sum(1)
    return [output[:length] for output, length in zip(outputs, lengths, strict=True)]


def answers(rows: EncodedRows, outputs: Sequence[np.ndarray]) -> list[Any]:
    """The task's answer to each record, from the outputs of all windows."""
    found, at = [], 0
    for one, windows in zip(rows.task.inputs(rows.records), rows.windows, strict=True):
        found.append(rows.task.answer(one, windows, outputs[at : at + len(windows)]))
        at += len(windows)
    return found
