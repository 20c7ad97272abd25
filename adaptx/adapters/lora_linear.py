"""Frozen Linears that read the same x, and LoRAs beside them, as one differentiable function.

    u = x A^T    y = x W^T + b + u B^T
    du = dy B    dx = dy W + du A    dA = du^T x    dB = dy^T u    (W and b get no gradient)

An update is added into the Linear's own output, so that with one adapter nothing of its size is
made twice, and only x and u are kept for the backward pass. Linears that read the same x (query,
key, value) are one, with a B of their blocks and zeros between. Spans of x may belong to different
adapters: their small products are batched, padded to the longest span.

T rows and tokens, I input, O output, R rank, N ranks of all sites, G spans, M rows of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from adaptx.adapters.frozen import Frozen


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
    x: Tensor, frozen: Frozen, spans: Spans, parts: Sequence[Sequence[Part | None]]
) -> Tensor:
    """The outputs `[…, O]` of Linears that read x `[…, I]`, side by side.

    `parts` are each Linear's, by span; None where a span's rows are the plain Linear's.
    """
    a, b = [], []
    for place, its in enumerate(parts):
        if stack := _stacked(its):
            before, after = sum(frozen.outputs[:place]), sum(frozen.outputs[place + 1 :])
            a.append(stack[0])
            b.append(pad(stack[1], (0, 0, before, after)) if before or after else stack[1])
    if not a:
        return cast(Tensor, _LoraLinears.apply(x, frozen, spans, None, None))
    a_GNI, b_GON = torch.cat(a, 1).to(x.dtype), torch.cat(b, 2).to(x.dtype)
    return cast(Tensor, _LoraLinears.apply(x, frozen, spans, a_GNI, b_GON))


def lora_linear(x: Tensor, base: nn.Linear, a_IR: Tensor, b_RO: Tensor) -> Tensor:
    """One Linear and one adapter for all of x, its matrices as a bank has them; in autocast's dtype
    where it is on.
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    every = Spans([x.numel() // x.shape[-1]])
    return lora_linears(x, Frozen([base], x.dtype), every, [[Part(a_IR.T, b_RO.T)]])


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
        frozen: Frozen,
        spans: Spans,
        a_GNI: Tensor | None,
        b_GON: Tensor | None,
    ) -> Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        y_TO = frozen(x_TI)
        if a_GNI is not None and b_GON is not None:
            x_GMI = spans.padded(x_TI)
            u_GMN = torch.bmm(x_GMI, a_GNI.transpose(1, 2))
            spans.add(y_TO, u_GMN, b_GON.transpose(1, 2))
            ctx.save_for_backward(x_GMI, u_GMN, a_GNI, b_GON)
        ctx.frozen, ctx.spans = frozen, spans
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dy_TO = dy.reshape(-1, dy.shape[-1])
        # Not below the lowest adapter.
        dx_TI = ctx.frozen.gradient(dy_TO) if ctx.needs_input_grad[0] else None
        da = db = None
        if saved := ctx.saved_tensors:
            x_GMI, u_GMN, a_GNI, b_GON = saved
            dy_GMO = ctx.spans.padded(dy_TO)
            du_GMN = torch.bmm(dy_GMO, b_GON)
            da = torch.bmm(du_GMN.transpose(1, 2), x_GMI)
            db = torch.bmm(dy_GMO.transpose(1, 2), u_GMN)
            if dx_TI is not None:
                ctx.spans.add(dx_TI, du_GMN, a_GNI)
        dx = None if dx_TI is None else dx_TI.view(*dy.shape[:-1], -1)
        return dx, None, None, da, db
