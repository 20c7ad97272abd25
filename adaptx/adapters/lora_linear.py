"""Frozen Linears that read the same x, and LoRAs beside them, as one differentiable function.

    u = x A^T    y = x W^T + b + u B^T
    du = dy B    dx = dy W + du A    dA = du^T x    dB = dy^T u    (W and b get no gradient)

An update is added into the Linear's own output, so that with one adapter nothing of its size is
made twice, and only x and u are kept for the backward pass. Linears that read the same x (query,
key, value) share the products with A, and their gradients of x are added up in place. Spans of x
may belong to different adapters: their small products are batched, padded to the longest span.

T rows and tokens, I input, O output, R rank, N ranks of all sites, G spans, M rows of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from torch.nn.utils.rnn import pad_sequence


class Part(NamedTuple):
    """An adapter's LoRA at a Linear: a `[R, I]`, b `[O, R]`."""

    a: Tensor
    b: Tensor
    scale: float = 1.0


class Spans:
    """The rows of x `[T, I]`, shared out: so many to each span, one after another."""

    def __init__(self, sizes: Sequence[int]):
        self.sizes, self.alike = list(sizes), len(set(sizes)) == 1

    def padded(self, x_TW: Tensor) -> Tensor:
        """`[G, M, W]`; padding is 0, so that a sum over M is one over a span's own rows."""
        if self.alike:
            return x_TW.view(len(self.sizes), -1, x_TW.shape[1])
        return pad_sequence(x_TW.split(self.sizes), batch_first=True)

    def add(self, y_TW: Tensor, u_GMN: Tensor, w_GNW: Tensor) -> None:
        """Add each span's u w to its rows of y, in place."""
        if self.alike:
            y_TW.view(len(self.sizes), -1, y_TW.shape[1]).baddbmm_(u_GMN, w_GNW)
        else:  # one by one: padded, they would have to be gathered again
            for y, u, w in zip(y_TW.split(self.sizes), u_GMN, w_GNW, strict=True):
                y.addmm_(u[: len(y)], w)


def lora_linears(
    x: Tensor, bases: Sequence[nn.Linear], spans: Spans, parts: Sequence[Sequence[Part | None]]
) -> list[Tensor]:
    """The outputs `[…, O]` of Linears that read x `[…, I]`, in autocast's dtype where it is on.

    `parts` are each Linear's, by span; None where a span's rows are the plain Linear's.
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    weights = [
        (base.weight.to(x.dtype), None if base.bias is None else base.bias.to(x.dtype))
        for base in bases
    ]
    stacks = [_stacked(its) for its in parts]
    read = [stack[0] for stack in stacks if stack]
    a_GNI = torch.cat(read, 1).to(x.dtype) if read else None
    b_GOR = [stack[1].to(x.dtype) if stack else None for stack in stacks]
    return list(_LoraLinears.apply(x, weights, spans, a_GNI, *b_GOR))


def lora_linear(x: Tensor, base: nn.Linear, a_IR: Tensor, b_RO: Tensor) -> Tensor:
    """One Linear and one adapter for all of x, its matrices as a bank has them."""
    every = Spans([x.numel() // x.shape[-1]])
    return lora_linears(x, [base], every, [[Part(a_IR.T, b_RO.T)]])[0]


def _stacked(parts: Sequence[Part | None]) -> tuple[Tensor, Tensor] | None:
    """A `[G, R, I]` and scaled B `[G, O, R]`, with zeros up to the largest rank; None for none."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    rank = max(len(part.a) for part in there)
    nothing = Part(there[0].a[:0], there[0].b[:, :0])
    a, b = [], []
    for part in (part or nothing for part in parts):
        short = rank - len(part.a)
        scaled = part.b if part.scale == 1 else part.b * part.scale
        a.append(pad(part.a, (0, 0, 0, short)) if short else part.a)
        b.append(pad(scaled, (0, short)) if short else scaled)
    return torch.stack(a), torch.stack(b)


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Sequence[tuple[Tensor, Tensor | None]],
        spans: Spans,
        a_GNI: Tensor | None,
        *b_GOR: Tensor | None,
    ) -> tuple[Tensor, ...]:
        x_TI = x.reshape(-1, x.shape[-1])
        ys = [linear(x_TI, w_OI, bias_O) for w_OI, bias_O in weights]
        if a_GNI is not None:
            x_GMI = spans.padded(x_TI)
            u_GMN = torch.bmm(x_GMI, a_GNI.transpose(1, 2))
            for y_TO, u_GMR, b in zip(ys, _by_linear(u_GMN, b_GOR), b_GOR, strict=True):
                if b is not None:
                    spans.add(y_TO, u_GMR, b.transpose(1, 2))
            ctx.save_for_backward(x_GMI, u_GMN, a_GNI, *b_GOR)
        ctx.weights, ctx.spans = weights, spans
        return tuple(y_TO.view(*x.shape[:-1], -1) for y_TO in ys)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        flat = [dy.reshape(-1, dy.shape[-1]) for dy in dys]
        dx_TI = None
        if ctx.needs_input_grad[0]:  # not below the lowest adapter
            for dy_TO, (w_OI, _) in zip(flat, ctx.weights, strict=True):
                dx_TI = dy_TO @ w_OI if dx_TI is None else dx_TI.addmm_(dy_TO, w_OI)
        da, db = None, [None] * len(dys)
        if saved := ctx.saved_tensors:
            x_GMI, u_GMN, a_GNI, *b_GOR = saved
            du = []
            for place, u_GMR in enumerate(_by_linear(u_GMN, b_GOR)):
                if (b := b_GOR[place]) is not None:
                    dy_GMO = ctx.spans.padded(flat[place])
                    du.append(torch.bmm(dy_GMO, b))
                    db[place] = torch.bmm(dy_GMO.transpose(1, 2), u_GMR)
            du_GMN = torch.cat(du, 2) if len(du) > 1 else du[0]
            da = torch.bmm(du_GMN.transpose(1, 2), x_GMI)
            if dx_TI is not None:
                ctx.spans.add(dx_TI, du_GMN, a_GNI)
        dx = None if dx_TI is None else dx_TI.view(*dys[0].shape[:-1], -1)
        return dx, None, None, da, *db


def _by_linear(u_GMN: Tensor, b_GOR: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Each Linear's ranks of u, `[G, M, R]`; of none, `[G, M, 0]`."""
    return u_GMN.split([0 if b is None else b.shape[2] for b in b_GOR], 2)
