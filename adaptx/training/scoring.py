"""What ends an epoch: the averaged weights are scored on dev, and kept if they are the best."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptx.evaluation.metrics import classification_scores
from adaptx.training.average import Average
from adaptx.training.record import Job, Kept
from adaptx.training.runlog import RunLog


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
) -> tuple[dict[str, Any], bool, bool]:
    """Score and log an epoch that ended after optimizer step `step`.

    Its entry, whether it is the best so far, and whether patience is at its end. Raises
    TrainingDiverged. `model` as in `dev_scores`; `started` is a time.perf_counter().
    """
    entry: dict[str, Any] = {
        "epoch": epoch,
        "loss": float(np.mean(losses)),
        "seconds": round(time.perf_counter() - started, 2),
    }
    # The last step's weights have been through no loss yet.
    weights = (*job.adapter.weights().values(), *job.adapter.deltas().values())
    if not all(weight.isfinite().all() for weight in weights):
        raise kept.diverged("a weight isn't finite after it", step, epoch)
    with average.applied():
        if len(job.dev):
            entry |= dev_scores(job, model)
        sound = math.isfinite(entry.get("dev_loss", 0.0))
        best = sound and kept.offer(entry)
    if not sound:
        raise kept.diverged(f"the dev loss is {entry['dev_loss']}", step, epoch)
    log.epoch(entry, best)
    patience, waited = job.options.patience, epoch - kept.best["epoch"]
    return entry, best, bool(patience and len(job.dev) and waited >= patience)


@torch.no_grad()
def dev_scores(job: Job, model: nn.Module) -> dict[str, float]:
    """Loss and scores on dev; the processes share the rows and all get the answer.

    `model` gives logits `[B, L]` for ids and mask int64 `[B, S]`.
    """
    from accelerate.utils import gather_object

    model.eval()
    accelerator, dev = job.accelerator, job.dev
    # As many rows, and so forward passes, for each process, some of them twice: FSDP waits in each.
    share = -(-len(dev.ids) // accelerator.num_processes)
    mine = (np.arange(share) * accelerator.num_processes + accelerator.process_index) % len(dev.ids)
    found: list[tuple[int, list[float]]] = []
    # Twice a training micro-batch: no gradients are kept.
    parts = job.options.accumulate * accelerator.num_processes
    rows_at_once = 2 * max(1, job.options.batch_size // parts)
    for batch in job.encoder.text.batches([dev.ids[row] for row in mine], rows_at_once):
        logits = model(on_device(job, batch.input_ids), on_device(job, batch.attention_mask))
        found += zip(mine[batch.rows].tolist(), logits.float().cpu().tolist(), strict=True)
    gathered = dict(gather_object(found))
    logits = torch.tensor([gathered[row] for row in range(len(dev.ids))])
    losses = job.task.losses(logits, torch.from_numpy(dev.targets))
    return {
        "dev_loss": float(losses.mean()),
        **classification_scores(dev.targets, logits.argmax(1).numpy()),
    }


def on_device(job: Job, array: np.ndarray) -> Tensor:
    """An array where the training's process computes."""
    return torch.from_numpy(array).to(job.accelerator.device)
