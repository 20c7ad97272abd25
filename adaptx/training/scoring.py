"""Scores of a model on a training's dev rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from adaptx.evaluation.metrics import classification_scores
from adaptx.training.record import Job


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
