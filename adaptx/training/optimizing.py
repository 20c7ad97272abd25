"""The optimizer and the schedule that every adapter is trained with."""

from __future__ import annotations

from typing import Any

import torch

from adaptx.adapters.adapter import Adapter
from adaptx.training.settings import Settings


def optimizer_and_schedule(
    adapter: Adapter, options: Settings, steps: int
) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW on the adapter's own parameters; linear warm-up, then linear decay to 0 at `steps`."""
    from transformers import get_linear_schedule_with_warmup

    matrices = [p for p in adapter.trainable() if p.ndim > 1]
    vectors = [p for p in adapter.trainable() if p.ndim <= 1]  # biases, norms: not decayed
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, lr=options.lr, weight_decay=options.weight_decay, fused=True
    )
    warmup = int(options.warmup * steps)
    return optimizer, get_linear_schedule_with_warmup(optimizer, warmup, steps)
