"""The fast path: BERT-shaped encoders in one number format, LoRA fused into their Linears.

What the encoder's own modules leave to be gained (docs/performance.md has each figure):
    - everything in one dtype: autocast goes to and fro between two
    - query, key and value share their updates' products and the gradient of what they read
    - where rows differ in length, padding is left out of all but attention, and there an adapter's
      rows are padded to the longest of them, or of its neighbours, not of all
    - attention as two plain products where no GPU is: torch's fused one has a slow backward there

The adapter's answer is the same as on the plain path, up to rounding. B rows, S tokens with
padding, T tokens of all rows, W any width, H the states' width, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from adaptx.adapters.lora_linear import Part, Spans, lora_linears
from adaptx.encoder.families import is_bert_shaped
from adaptx.training.packing import Gaps, packed, padded

if TYPE_CHECKING:
    from adaptx.adapters.adapter import Adapter
    from adaptx.encoder.encoder import Encoder

Owner = tuple[int, "Adapter | None"]  # so many rows, and their adapter
PADDING = 0.04  # the share of padding from which on it is left out of the Linears
TOGETHER = 0.2  # the share up to which attention takes several adapters' rows together


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
        """int64 `[B, S]`, int64 `[B, S]` -> `[B, S, H]`; `owners` share out the rows, in order.

        States at padding mean nothing.
        """
        with torch.autocast(input_ids.device.type, enabled=False):
            tokens = Tokens(mask, [rows for rows, _ in owners], self.dtype)
            spans = Spans(tokens.shares)
            adapters = [adapter for _, adapter in owners]
            x = tokens.packed(self.embeddings(input_ids).to(self.dtype))
            for number, layer in enumerate(self.layers):
                given = layer, f"encoder.layer.{number}.", x, tokens, spans, adapters
                if self.recomputes and torch.is_grad_enabled():
                    x = checkpoint(self._layer, *given, use_reentrant=False)
                else:
                    x = self._layer(*given)
            return tokens.padded(x)

    def _layer(
        self,
        layer: Any,
        at: str,
        x: Tensor,
        tokens: Tokens,
        spans: Spans,
        adapters: Sequence[Adapter | None],
    ) -> Tensor:
        """Attention and FFN, each normalized after its residual: `[T, H]` -> `[T, H]`."""

        def linears(x: Tensor, *names: str) -> list[Tensor]:
            sites = [at + name for name in names]
            parts = [[_part(adapter, site) for adapter in adapters] for site in sites]
            return lora_linears(x, [self.encoder.sites[site].base for site in sites], spans, parts)

        q, k, v = linears(x, *(f"attention.self.{name}" for name in ("query", "key", "value")))
        context = tokens.by_group(self._attention, q, k, v)
        (attended,) = linears(context, "attention.output.dense")
        x = self._norm(attended + x, layer.attention.output.LayerNorm)
        (wide,) = linears(x, "intermediate.dense")
        wide = layer.intermediate.intermediate_act_fn(wide)
        (narrow,) = linears(wide, "output.dense")
        return self._norm(narrow + x, layer.output.LayerNorm)

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


def _part(adapter: Adapter | None, name: str) -> Part | None:
    site = adapter.sites.get(name) if adapter is not None else None
    return None if site is None else Part(site.a, site.b, site.scale)


class Tokens:
    """The tokens of a batch with the mask int64 `[B, S]`, padding last, one row after another.

    Its rows are shared out, so many to each. Attention takes neighbours together where they are of
    like length: a group is padded to its own longest row where it must be.

    shares   the tokens of each share
    sizes    the tokens of each group
    """

    def __init__(self, mask: Tensor, rows: Sequence[int], dtype: torch.dtype):
        self.shape = mask.shape
        lengths = mask.sum(1).tolist()
        self.groups = [
            Group(mask[start:end], lengths[start:end], dtype)
            for start, end in pairwise(accumulate(_together(rows, lengths), initial=0))
        ]
        self.sizes = [sum(group.counts) for group in self.groups]
        counts = [count for group in self.groups for count in group.counts]
        ends = accumulate(rows, initial=0)
        self.shares = [sum(counts[start:end]) for start, end in pairwise(ends)]
        only = self.groups[0]
        if only.shape == self.shape:  # whose gaps are the batch's
            self.gaps = only.gaps
        else:
            self.gaps = Gaps.of(counts, mask.shape[1], mask.device)

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


def _together(rows: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """The rows of each group: shares, and neighbours while little of the group is padding."""
    found, start = [rows[0]], 0
    for more in rows[1:]:
        its = lengths[start : start + found[-1] + more]
        if sum(its) >= (1 - TOGETHER) * max(its) * len(its):
            found[-1] += more
        else:
            start += found[-1]
            found.append(more)
    return found


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
        self.gaps = Gaps.of(self.counts, longest, mask.device)
