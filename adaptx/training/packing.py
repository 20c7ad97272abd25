"""Rows of unlike lengths: their tokens one after another, or padded to the longest row.

B rows, S tokens with padding, T tokens of all rows, W any width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaps:
    """Where tokens lie, with padding and without.

    places_T   of each token in what is padded, int64 `[T]`
    tokens_BS  which token each place has, int64 `[B S]`; padding has the one before it
    """

    places_T: Tensor
    tokens_BS: Tensor

    @classmethod
    def of(cls, counts: Sequence[int], longest: int, device: torch.device) -> Gaps | None:
        """Each row begins with so many tokens; None if nothing is padding. Found on the CPU: a GPU
        would be waited for.
        """
        if sum(counts) == len(counts) * longest:
            return None
        kept = (torch.arange(longest) < torch.tensor(counts)[:, None]).flatten()
        tokens = (kept.cumsum(0) - 1).clamp(min=0)
        return cls(kept.nonzero()[:, 0].to(device), tokens.to(device))


def packed(x: Tensor, gaps: Gaps | None) -> Tensor:
    """`[B, S, W]` -> `[T, W]`."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if gaps is None else _Packed.apply(flat, gaps.places_T)


def padded(x: Tensor, gaps: Gaps | None, shape: Sequence[int]) -> Tensor:
    """`[T, W]` -> `[B, S, W]`; padding repeats tokens."""
    spread = x if gaps is None else _Padded.apply(x, gaps.tokens_BS, gaps.places_T)
    return spread.view(*shape, -1)


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, places_T: Tensor) -> Tensor:
        ctx.places_T, ctx.rows = places_T, len(x)
        return x.index_select(0, places_T)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        dx = dy.new_zeros((ctx.rows, dy.shape[1]))
        return dx.index_copy_(0, ctx.places_T, dy), None


class _Padded(torch.autograd.Function):
    """Nothing flows back from padding: attention masks its keys, and its queries are dropped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens_BS: Tensor, places_T: Tensor) -> Tensor:
        ctx.places_T = places_T
        return x.index_select(0, tokens_BS)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return dy.index_select(0, ctx.places_T), None, None
