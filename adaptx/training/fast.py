"""The fast path: BERT-shaped encoders in one number format, LoRA fused into their Linears.

What the encoder's own modules leave to be gained (docs/performance.md has each figure):
    - everything in one dtype: autocast goes to and fro between two
    - query, key and value share their updates' products and the gradient of what they read
    - where rows differ in length, padding is left out of all but attention, and there an adapter's
      rows are padded to the longest of them, not of all
    - attention as two plain products where no GPU is: torch's fused one has a slow backward there

The adapter's answer is the same as on the plain path, up to rounding. B rows, S tokens with
padding, T tokens of all rows, W any width, H the states' width, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from adaptx.adapters.lora_linear import Part, Span, lora_linears
from adaptx.encoder.families import is_bert_shaped

if TYPE_CHECKING:
    from adaptx.adapters.adapter import Adapter
    from adaptx.encoder.encoder import Encoder

Owner = tuple[int, int, "Adapter"]  # rows from, to, whose adapter this is
PADDING = 0.04  # the share of padding from which on it is left out of the Linears


def unfit(encoder: Encoder, adapters: Sequence[Adapter]) -> str | None:
    """Why the fast path doesn't fit, for people; None where it does."""
    from torch.distributed.fsdp import FSDPModule

    if any(adapter.model is not None for adapter in adapters):
        return "the method brings a model of its own"
    if not is_bert_shaped(encoder.config):
        return f"the family {encoder.config.model_type} isn't shaped like BERT"
    if isinstance(encoder.model, FSDPModule):  # its weights come together around its own modules
        return "FSDP divides the encoder"
    if any(site.dropout for adapter in adapters for site in adapter.sites.values()):
        return "LoRA's dropout is asked for"
    return None


class FastBert:
    """Token states of a BERT-shaped encoder with LoRAs, on weights held in `dtype` or cast to it.

    Frozen but for the adapters' own matrices.
    """

    def __init__(self, encoder: Encoder, dtype: torch.dtype):
        self.encoder, self.dtype = encoder, dtype
        self.heads = encoder.config.num_attention_heads
        model: Any = encoder.model
        self.embeddings, self.layers = model.embeddings, list(model.encoder.layer)
        self.recomputes = model.is_gradient_checkpointing

    def hidden(self, input_ids: Tensor, mask: Tensor, owners: Sequence[Owner]) -> Tensor:
        """int64 `[B, S]`, int64 `[B, S]` -> `[B, S, H]`; `owners` share out the rows.

        States at padding mean nothing.
        """
        with torch.autocast(input_ids.device.type, enabled=False):
            cuts = [row for start, end, _ in owners for row in (start, end)]
            tokens = Tokens(mask, cuts, self.dtype)
            ends = [0, *tokens.ends]
            spans = [(ends[start], ends[end], adapter) for start, end, adapter in owners]
            x = tokens.packed(self.embeddings(input_ids).to(self.dtype))
            for number, layer in enumerate(self.layers):
                at = f"encoder.layer.{number}."
                if self.recomputes and torch.is_grad_enabled():
                    x = checkpoint(self._layer, layer, at, x, tokens, spans, use_reentrant=False)
                else:
                    x = self._layer(layer, at, x, tokens, spans)
            return tokens.padded(x)

    def _layer(
        self, layer: Any, at: str, x: Tensor, tokens: Tokens, spans: Sequence[Owner]
    ) -> Tensor:
        """Attention and FFN, each normalized after its residual: `[T, H]` -> `[T, H]`."""
        heads = [f"{at}attention.self.{name}" for name in ("query", "key", "value")]
        q, k, v = self._linears(x, heads, spans)
        context = tokens.by_group(self._attention, q, k, v)
        (attended,) = self._linears(context, [f"{at}attention.output.dense"], spans)
        x = self._norm(attended + x, layer.attention.output.LayerNorm)
        (wide,) = self._linears(x, [f"{at}intermediate.dense"], spans)
        wide = layer.intermediate.intermediate_act_fn(wide)
        (narrow,) = self._linears(wide, [f"{at}output.dense"], spans)
        return self._norm(narrow + x, layer.output.LayerNorm)

    def _linears(self, x: Tensor, names: Sequence[str], spans: Sequence[Owner]) -> list[Tensor]:
        def part(adapter: Adapter, name: str) -> Part | None:
            site = adapter.sites.get(name)
            return None if site is None else Part(site.a, site.b, site.scale)

        found = [
            Span(start, end, [part(adapter, name) for name in names])
            for start, end, adapter in spans
        ]
        return lora_linears(x, [self.encoder.sites[name].base for name in names], found)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, away: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(D) + away) v: `[B, S, H]` each -> `[B, S, H]`."""
        rows, length, width = q.shape
        q, k, v = (value.view(rows, length, self.heads, -1).transpose(1, 2) for value in (q, k, v))
        if q.is_cuda:
            found = scaled_dot_product_attention(q, k, v, attn_mask=away)
        else:
            q, k, v = (value.reshape(rows * self.heads, length, -1) for value in (q, k, v))
            alpha = 1 / math.sqrt(q.shape[-1])
            mask = away.expand(rows, self.heads, 1, length).reshape(-1, 1, length)
            scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=alpha)
            found = torch.bmm(scores.softmax(-1), v).view(rows, self.heads, length, -1)
        return found.transpose(1, 2).reshape(rows, length, width)

    def _norm(self, x: Tensor, norm: Any) -> Tensor:
        weight, bias = norm.weight, norm.bias
        if x.is_cuda:  # a CPU takes fp32 weights beside any x
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        return layer_norm(x, (x.shape[-1],), weight, bias, norm.eps)


class Tokens:
    """The tokens of a batch with the mask int64 `[B, S]`, padding last, one row after another.

    Rows between two of the `cuts` are a group, padded to its own longest row where it must be.

    ends     how many tokens there are up to each row's end
    """

    def __init__(self, mask: Tensor, cuts: Sequence[int], dtype: torch.dtype):
        self.shape = mask.shape
        spans = pairwise(sorted({0, *cuts, len(mask)}))
        lengths = mask.sum(1).tolist()
        self.groups = [Group(mask[start:end], lengths[start:end], dtype) for start, end in spans]
        counts = [count for group in self.groups for count in group.counts]
        self.ends = list(accumulate(counts))
        self.sizes = [sum(group.counts) for group in self.groups]
        only = self.groups[0]
        if only.shape == self.shape:  # whose gaps are the batch's
            self.gaps = only.gaps
        else:
            self.gaps = Gaps.of(counts, mask)

    def packed(self, x: Tensor) -> Tensor:
        """`[B, S, W]` -> `[T, W]`."""
        return packed(x, self.gaps)

    def padded(self, x: Tensor) -> Tensor:
        """`[T, W]` -> `[B, S, W]`."""
        return padded(x, self.gaps, self.shape)

    def by_group(self, attention: Callable[..., Tensor], *values: Tensor) -> Tensor:
        """`attention` of each group's values `[rows, its longest, W]` and what is added to its
        scores: `[T, W]` each -> `[T, W]`.
        """
        parts = zip(*(value.split(self.sizes) for value in values), strict=True)
        found = [
            packed(
                attention(*(padded(part, group.gaps, group.shape) for part in its), group.away),
                group.gaps,
            )
            for group, its in zip(self.groups, parts, strict=True)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)


class Group:
    """Rows that attention takes together; where little of them is padding, that is kept as tokens.

    counts  the tokens of each row
    away    what is added to its scores, `[rows, 1, 1, longest]`: 0, or the least there is
    """

    def __init__(self, mask: Tensor, lengths: Sequence[int], dtype: torch.dtype):
        longest = max(lengths)
        mask = mask[:, :longest]
        self.shape = mask.shape
        self.away = (1 - mask[:, None, None, :]).to(dtype) * torch.finfo(dtype).min
        dense = sum(lengths) >= (1 - PADDING) * mask.numel()
        self.counts = [longest] * len(lengths) if dense else list(lengths)
        self.gaps = Gaps.of(self.counts, mask)


@dataclass(frozen=True)
class Gaps:
    """Where tokens lie, with what is left out and without.

    places_T   of each token in what is padded, int64 `[T]`
    tokens_BS  which token each place has, int64 `[B S]`; padding has the one before it
    """

    places_T: Tensor
    tokens_BS: Tensor

    @classmethod
    def of(cls, counts: Sequence[int], mask: Tensor) -> Gaps | None:
        """Each row begins with so many tokens, in the shape of the mask; None if nothing is left
        out. Found on the CPU: a GPU would be waited for.
        """
        if sum(counts) == mask.numel():
            return None
        kept = (torch.arange(mask.shape[1]) < torch.tensor(counts)[:, None]).flatten()
        tokens = (kept.cumsum(0) - 1).clamp(min=0)
        return cls(kept.nonzero()[:, 0].to(mask.device), tokens.to(mask.device))


def packed(x: Tensor, gaps: Gaps | None) -> Tensor:
    """`[B, S, W]` -> `[T, W]`."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if gaps is None else _Packed.apply(flat, gaps.places_T)


def padded(x: Tensor, gaps: Gaps | None, shape: Sequence[int]) -> Tensor:
    """`[T, W]` -> `[B, S, W]`."""
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
