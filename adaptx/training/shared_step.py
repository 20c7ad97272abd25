"""One step of a job with many adapters: one forward and one backward pass for all of them.

On a CPU the threads are shared out: each of a few workers takes the rows of some adapters, with its
own share of the threads, since large products on one thread each get more done than the same
products cut up among all (docs/performance.md). What each adapter then does for itself
is shared out, too.

Dimensions: B windows of all adapters, S tokens, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from adaptx.adapters.adapter import Adapter
from adaptx.adapters.bank import Bank
from adaptx.encoder.encoder import Encoder
from adaptx.training.member import Trainee
from adaptx.training.processes import FAILURES, divided

if TYPE_CHECKING:
    from accelerate import Accelerator

S = TypeVar("S")
T = TypeVar("T")
WORKERS = 4  # of more, Python's lock would hold up one by another


class Drawn(NamedTuple):
    """A trainee's next rows in this process: token ids of their windows, and the rows' targets."""

    trainee: Trainee
    ids: Sequence[list[int]]
    targets: Sequence[np.ndarray]


class SharedStep:
    """What takes the steps, on an encoder in `dtype`; a context manager, which has the workers."""

    def __init__(self, encoder: Encoder, dtype: torch.dtype, accelerator: Accelerator):
        self.encoder, self.dtype, self.accelerator = encoder, dtype, accelerator
        self.threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(WORKERS)

    def __enter__(self) -> SharedStep:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()

    def __call__(self, running: Sequence[Trainee]) -> list[tuple[float, int]]:
        """Leave in each adapter the gradient of its loss; each one's loss, and its tokens without
        padding. Where processes divide the rows, every one of them has the sums of all.
        """
        drawn = [Drawn(trainee, *trainee.drawn()) for trainee in running if len(trainee.rows_here)]
        # Neighbours of like length, which attention takes together.
        drawn.sort(key=lambda one: max(map(len, one.ids)))
        tokens = [sum(map(len, one.ids)) for one in drawn]
        parts = [[drawn[at] for at in its] for its in divided(tokens, self._workers(drawn))]
        step = partial(_forward_and_backward, self.encoder, dtype=self.dtype)
        seen = self._by_workers(step, parts) if drawn else {}
        found = [seen.get(trainee, (0.0, 0)) for trainee in running]
        alone = self.accelerator.num_processes == 1
        return found if alone else _summed(running, found, self.accelerator)

    def each(
        self, act: Callable[[Trainee], None], trainees: Sequence[Trainee]
    ) -> dict[Trainee, Exception]:
        """Do it with each, on a CPU in several threads; what of FAILURES some have met."""
        workers = self._sharing(len(trainees)) if self.encoder.device.type == "cpu" else 1
        return self._by_workers(partial(_met, act), [trainees[n::workers] for n in range(workers)])

    def _by_workers(
        self, do: Callable[[Sequence[S]], dict[Trainee, T]], parts: Sequence[Sequence[S]]
    ) -> dict[Trainee, T]:
        """What each part gives, a worker for each; a single one is done here."""

        def work(part: Sequence[S]) -> dict[Trainee, T]:
            torch.set_num_threads(self.threads // len(parts))
            return do(part)

        if len(parts) == 1:
            return do(parts[0])
        try:
            return {one: its for found in self.pool.map(work, parts) for one, its in found.items()}
        finally:
            torch.set_num_threads(self.threads)

    def _workers(self, drawn: Sequence[Drawn]) -> int:
        """As many as share out the threads evenly; one on a GPU, and where dropout is drawn, which
        must come in an order.
        """
        fast = all(one.trainee.routed.bert for one in drawn)
        if self.encoder.device.type != "cpu" or not (drawn and fast):
            return 1
        return self._sharing(len(drawn))

    def _sharing(self, many: int) -> int:
        return max(n for n in range(1, min(WORKERS, many) + 1) if self.threads % n == 0)


def _met(act: Callable[[Trainee], None], trainees: Sequence[Trainee]) -> dict[Trainee, Exception]:
    found: dict[Trainee, Exception] = {}
    for trainee in trainees:
        try:
            act(trainee)
        except FAILURES as error:
            found[trainee] = error
    return found


def _forward_and_backward(
    encoder: Encoder, drawn: Sequence[Drawn], dtype: torch.dtype
) -> dict[Trainee, tuple[float, int]]:
    ids = [ids for one in drawn for ids in one.ids]
    counts = [len(one.ids) for one in drawn]
    spans = list(pairwise(accumulate(counts, initial=0)))
    batch = encoder.text.batch(ids, range(len(ids)))
    input_ids = torch.from_numpy(batch.input_ids).to(encoder.device)
    mask = torch.from_numpy(batch.attention_mask).to(encoder.device)
    adapters = [one.trainee.job.adapter for one in drawn]
    bert = drawn[0].trainee.routed.bert
    if bert is not None and all(one.trainee.routed.bert for one in drawn):
        hidden = bert.hidden(input_ids, mask, list(zip(counts, adapters, strict=True)))
    else:
        hidden = _banked(encoder, adapters, counts, input_ids, mask, dtype)
    losses = [
        one.trainee.loss(hidden[start:end], mask[start:end], one.targets)
        for one, (start, end) in zip(drawn, spans, strict=True)
    ]
    # Each loss depends on its own adapter alone, so the sum's gradient is each one's own.
    torch.stack(losses).sum().backward()
    return {
        one.trainee: (float(loss.detach()), int(mask[start:end].sum()))
        for one, loss, (start, end) in zip(drawn, losses, spans, strict=True)
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
