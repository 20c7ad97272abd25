"""Frozen Linears that read the same x, and LoRAs beside them, as one differentiable function.

    u = x A^T    y = x W^T + b + u B'^T      B' = scale B
    du = dy B'    dx = dy W + du A    dA = du^T x    dB = scale dy^T u    (W and b get no gradient)

An update is added into the Linear's own output (addmm), so that nothing of its size is made twice,
and only x and u are kept for the backward pass. Linears that read the same x (query, key, value)
share the products with A, and their gradients of x are added up in place. Spans of x may belong to
different adapters. T rows and tokens, I input, O output, R rank, N ranks of all sites of a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Part(NamedTuple):
    """An adapter's LoRA at a Linear: a `[R, I]`, b `[O, R]`."""

    a: Tensor
    b: Tensor
    scale: float = 1.0


class Span(NamedTuple):
    """Rows `start` to `end` of x `[T, I]`, and their adapter's part at each Linear, or None."""

    start: int
    end: int
    parts: Sequence[Part | None]


def lora_linears(x: Tensor, bases: Sequence[nn.Linear], spans: Sequence[Span]) -> list[Tensor]:
    """The outputs `[…, O]` of Linears that read x `[…, I]`, in autocast's dtype where it is on.

    Spans don't overlap; rows of none are the plain Linear's.
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    weights = [
        (base.weight.to(x.dtype), None if base.bias is None else base.bias.to(x.dtype))
        for base in bases
    ]
    learnt = [t for span in spans for part in span.parts if part for t in (part.a, part.b)]
    return list(_LoraLinears.apply(x, weights, spans, *learnt))


def lora_linear(x: Tensor, base: nn.Linear, a_IR: Tensor, b_RO: Tensor) -> Tensor:
    """One Linear and one adapter for all of x, its matrices as a bank has them."""
    every = Span(0, x.numel() // x.shape[-1], [Part(a_IR.T, b_RO.T)])
    return lora_linears(x, [base], [every])[0]


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Sequence[tuple[Tensor, Tensor | None]],
        spans: Sequence[Span],
        *learnt: Tensor,
    ) -> tuple[Tensor, ...]:
        x_TI = x.reshape(-1, x.shape[-1])
        ys = [linear(x_TI, w_OI, bias_O) for w_OI, bias_O in weights]
        saved = [x_TI]
        for start, end, parts in spans:
            there = [part for part in parts if part is not None]
            if not there or start == end:
                continue
            a_NI = torch.cat([part.a for part in there]).to(x.dtype)
            u_TN = x_TI[start:end] @ a_NI.T
            saved += [a_NI, u_TN]
            at = 0
            for y_TO, part in zip(ys, parts, strict=True):
                if part is not None:
                    rank = part.b.shape[1]
                    b_OR = (part.b * part.scale).to(x.dtype)
                    y_TO[start:end].addmm_(u_TN[:, at : at + rank], b_OR.T)
                    saved.append(b_OR)
                    at += rank
        ctx.save_for_backward(*saved)
        ctx.weights, ctx.spans = weights, spans
        return tuple(y_TO.view(*x.shape[:-1], -1) for y_TO in ys)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, *saved = ctx.saved_tensors
        flat = [dy.reshape(-1, dy.shape[-1]) for dy in dys]
        dx_TI = None
        if ctx.needs_input_grad[0]:  # not below the lowest adapter
            for dy_TO, (w_OI, _) in zip(flat, ctx.weights, strict=True):
                dx_TI = dy_TO @ w_OI if dx_TI is None else dx_TI.addmm_(dy_TO, w_OI)
        gradients: list[Tensor | None] = []
        left = iter(saved)
        for start, end, parts in ctx.spans:
            there = [part for part in parts if part is not None]
            if not there or start == end:
                gradients += [None] * 2 * len(there)
                continue
            a_NI, u_TN = next(left), next(left)
            dus, dbs, at = [], [], 0
            for dy_TO, part in zip(flat, parts, strict=True):
                if part is not None:
                    rank, dy = part.b.shape[1], dy_TO[start:end]
                    dus.append(dy @ next(left))
                    dbs.append((dy.T @ u_TN[:, at : at + rank]).to(part.b.dtype) * part.scale)
                    at += rank
            du_TN = torch.cat(dus, 1) if len(dus) > 1 else dus[0]
            das = (du_TN.T @ x_TI[start:end]).to(there[0].a.dtype).split([b.shape[1] for b in dbs])
            if dx_TI is not None:
                dx_TI[start:end].addmm_(du_TN, a_NI)
            gradients += [g for da, db in zip(das, dbs, strict=True) for g in (da, db)]
        dx = None if dx_TI is None else dx_TI.view(*dys[0].shape[:-1], -1)
        return dx, None, None, *gradients
