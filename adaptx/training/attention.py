"""Attention as two products and a softmax, forward and backward, for a CPU.

    p = softmax(q k^T / sqrt(D) + away)    y = p v
    dv = p^T dy    ds = p (dp - sum(dp p))  with dp = dy v^T    dq = ds k / sqrt(D)
    dk = ds^T q / sqrt(D)

torch's fused one has a slow backward pass with a mask (docs/performance.md).

B rows, S tokens, W width of the states, H heads, N = B H, D = W / H.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

LANES = 32  # bf16 numbers that torch's softmax takes at once
LEFT = 8  # what is left of a row goes one by one: from so many on, fp32 is quicker


def attention(qkv: Tensor, away: Tensor, heads: int) -> Tensor:
    """`[B, S, 3 W]` (query, key, value side by side), and what is added to the scores,
    `[B, 1, 1, S]` -> `[B, S, W]`.
    """
    return cast(Tensor, _Attention.apply(qkv, away, heads))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, away: Tensor, heads: int) -> Tensor:
        rows, length, _ = qkv.shape
        qkv_3NSD = qkv.view(rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        qkv_3NSD = qkv_3NSD.reshape(3, rows * heads, length, -1)
        q, k, v = qkv_3NSD
        mask = away.expand(rows, heads, 1, length).reshape(-1, 1, length)
        alpha = 1 / math.sqrt(q.shape[-1])
        p = _softmax(torch.baddbmm(mask, q, k.transpose(1, 2), alpha=alpha))
        ctx.save_for_backward(qkv_3NSD, p)
        y = torch.bmm(p, v).view(rows, heads, length, -1)
        return y.transpose(1, 2).reshape(rows, length, -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        qkv_3NSD, p = ctx.saved_tensors
        q, k, v = qkv_3NSD
        rows, length, width = dy.shape
        dy = dy.view(rows, length, width // q.shape[-1], -1).transpose(1, 2).reshape(q.shape)
        found = torch.empty_like(qkv_3NSD)
        dq, dk, dv = found
        torch.bmm(p.transpose(1, 2), dy, out=dv)
        dp = torch.bmm(dy, v.transpose(1, 2))
        ds = _softmax_gradient(dp, p)
        alpha = 1 / math.sqrt(q.shape[-1])
        torch.baddbmm(dq, ds, k, beta=0, alpha=alpha, out=dq)
        torch.baddbmm(dk, ds.transpose(1, 2), q, beta=0, alpha=alpha, out=dk)
        found = found.view(3, rows, -1, length, q.shape[-1]).permute(1, 3, 0, 2, 4)
        return found.reshape(rows, length, -1), None, None


def _softmax(scores: Tensor) -> Tensor:
    """Over the last axis."""
    slow = scores.dtype is torch.bfloat16 and scores.shape[-1] % LANES >= LEFT
    return scores.softmax(-1, dtype=torch.float32 if slow else scores.dtype).to(scores.dtype)


def _softmax_gradient(dp: Tensor, p: Tensor) -> Tensor:
    slow = p.dtype is torch.bfloat16 and p.shape[-1] < LANES
    within = torch.float32 if slow else p.dtype
    found = torch._softmax_backward_data(dp.to(within), p.to(within), -1, within)
    return found.to(p.dtype)
