"""One step of a job with many adapters: one forward and one backward pass for all of them.

Dimensions: B windows of all adapters, S tokens, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from adaptx.adapters.adapter import Adapter
from adaptx.adapters.bank import Bank
from adaptx.encoder.encoder import Encoder
from adaptx.training.member import Trainee

if TYPE_CHECKING:
    from accelerate import Accelerator


def shared_step(
    encoder: Encoder, running: Sequence[Trainee], dtype: torch.dtype, accelerator: Accelerator
) -> list[tuple[float, int]]:
    """Leave in each adapter the gradient of its loss; each one's loss, and its tokens without
    padding. Where processes divide the rows, every one of them has the sums of all.
    """
    here = [(trainee, *trainee.drawn()) for trainee in running if len(trainee.rows_here)]
    seen = _forward_and_backward(encoder, here, dtype) if here else {}
    found = [seen.get(trainee, (0.0, 0)) for trainee in running]
    return found if accelerator.num_processes == 1 else _summed(running, found, accelerator)


def _forward_and_backward(
    encoder: Encoder,
    drawn: Sequence[tuple[Trainee, Sequence[list[int]], Sequence[np.ndarray]]],
    dtype: torch.dtype,
) -> dict[Trainee, tuple[float, int]]:
    # Neighbours of like length, which attention takes together.
    drawn = sorted(drawn, key=lambda one: max(map(len, one[1])))
    ids = [ids for _, its, _ in drawn for ids in its]
    counts = [len(its) for _, its, _ in drawn]
    spans = list(pairwise(accumulate(counts, initial=0)))
    batch = encoder.text.batch(ids, range(len(ids)))
    input_ids = torch.from_numpy(batch.input_ids).to(encoder.device)
    mask = torch.from_numpy(batch.attention_mask).to(encoder.device)
    adapters = [trainee.job.adapter for trainee, *_ in drawn]
    bert = drawn[0][0].routed.bert
    if bert is not None and all(trainee.routed.bert for trainee, *_ in drawn):
        hidden = bert.hidden(input_ids, mask, list(zip(counts, adapters, strict=True)))
    else:
        hidden = _banked(encoder, adapters, counts, input_ids, mask, dtype)
    losses = [
        trainee.loss(hidden[start:end], mask[start:end], targets)
        for (trainee, _, targets), (start, end) in zip(drawn, spans, strict=True)
    ]
    # Each loss depends on its own adapter alone, so the sum's gradient is each one's own.
    torch.stack(losses).sum().backward()
    return {
        trainee: (float(loss.detach()), int(mask[start:end].sum()))
        for (trainee, *_), loss, (start, end) in zip(drawn, losses, spans, strict=True)
    }


def _summed(
    running: Sequence[Trainee], found: Sequence[tuple[float, int]], accelerator: Accelerator
) -> list[tuple[float, int]]:
    """All gradients, losses and tokens in one exchange."""
    parameters = [p for trainee in running for p in trainee.job.adapter.trainable()]
    seen = torch.tensor(found, device=accelerator.device)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([part.flatten() for part in (*parts, seen)])
    sums: Tensor = accelerator.reduce(flat, "sum")
    for parameter, gradient in zip(
        parameters, sums.split([*(p.numel() for p in parameters), seen.numel()]), strict=False
    ):
        parameter.grad = gradient.view_as(parameter)
    return [(loss, int(tokens)) for loss, tokens in sums[-seen.numel() :].view_as(seen).tolist()]


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
