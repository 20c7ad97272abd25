"""The fast path: BERT-shaped encoders in one number format, LoRA fused into their Linears.

What the encoder's own modules leave to be gained (docs/performance.md has each figure):
    - everything in one dtype: autocast goes to and fro between two
    - query, key and value are one product, and on x86 frozen weights are laid out for it once
    - where rows differ in length, padding is left out of all but attention, and there an adapter's
      rows are padded to the longest of them, or of its neighbours, not of all
    - attention as two plain products where no GPU is: torch's fused one has a slow backward there

The adapter's answer is the same as on the plain path, up to rounding. B rows, S tokens with
padding, T tokens of all rows, W any width, H the states' width, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from adaptx.adapters.frozen import Frozen
from adaptx.adapters.lora_linear import Part, Spans, lora_linears
from adaptx.encoder.families import is_bert_shaped
from adaptx.training.attention import attention
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
        self.dtype, self.heads = dtype, encoder.config.num_attention_heads
        model: Any = encoder.model
        self.embeddings, self.recomputes = model.embeddings, model.is_gradient_checkpointing
        self.layers = [
            Layer.of(encoder, layer, f"encoder.layer.{number}.", dtype)
            for number, layer in enumerate(model.encoder.layer)
        ]

    @classmethod
    def of(cls, encoder: Encoder, dtype: torch.dtype) -> FastBert:
        """That of an encoder held for a training (see distributed.held): laid out once."""
        made = _made.setdefault(encoder, {})
        if dtype not in made:
            made[dtype] = cls(encoder, dtype)
        return made[dtype]

    @staticmethod
    def let_go(encoder: Encoder) -> None:
        """Free what was laid out of its weights, whoever still knows of it."""
        for bert in _made.pop(encoder, {}).values():
            for its in (part for layer in bert.layers for part in layer):
                if isinstance(its, Linears):
                    its.frozen.let_go()

    def hidden(self, input_ids: Tensor, mask: Tensor, owners: Sequence[Owner]) -> Tensor:
        """int64 `[B, S]`, int64 `[B, S]` -> `[B, S, H]`; `owners` share out the rows, in order.

        States at padding mean nothing.
        """
        with torch.autocast(input_ids.device.type, enabled=False):
            tokens = Tokens(mask, [rows for rows, _ in owners], self.dtype)
            spans = Spans(tokens.shares)
            adapters = [adapter for _, adapter in owners]
            x = tokens.packed(self.embeddings(input_ids).to(self.dtype))
            for layer in self.layers:
                given = layer, x, tokens, spans, adapters
                if self.recomputes and torch.is_grad_enabled():
                    x = checkpoint(self._layer, *given, use_reentrant=False)
                else:
                    x = self._layer(*given)
            return tokens.padded(x)

    def _layer(
        self,
        layer: Layer,
        x: Tensor,
        tokens: Tokens,
        spans: Spans,
        adapters: Sequence[Adapter | None],
    ) -> Tensor:
        """Attention and FFN, each normalized after its residual: `[T, H]` -> `[T, H]`."""

        def linears(x: Tensor, its: Linears) -> Tensor:
            parts = [[_part(adapter, site) for adapter in adapters] for site in its.sites]
            return lora_linears(x, its.frozen, spans, parts)

        context = tokens.by_group(self._attention, linears(x, layer.read))
        x = self._norm(linears(context, layer.attended) + x, layer.norm)
        wide = layer.activation(linears(x, layer.wide))
        return self._norm(linears(wide, layer.narrow) + x, layer.last_norm)

    def _attention(self, qkv: Tensor, away: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(D) + away) v: `[B, S, 3 H]` -> `[B, S, H]`."""
        if not qkv.is_cuda:
            return attention(qkv, away, self.heads)
        rows, length, _ = qkv.shape
        q, k, v = qkv.view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        found = scaled_dot_product_attention(q, k, v, attn_mask=away)
        return found.transpose(1, 2).reshape(rows, length, -1)

    def _norm(self, x: Tensor, norm: Any) -> Tensor:
        weight, bias = norm.weight, norm.bias
        if x.is_cuda:  # a CPU takes fp32 weights beside any x
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        return layer_norm(x, (x.shape[-1],), weight, bias, norm.eps)


_made: WeakKeyDictionary[Encoder, dict[torch.dtype, FastBert]] = WeakKeyDictionary()


class Linears(NamedTuple):
    """Sites that read the same, by name, and their Linears."""

    sites: Sequence[str]
    frozen: Frozen


class Layer(NamedTuple):
    """What a layer of the encoder does, in its order."""

    read: Linears  # query, key, value
    attended: Linears
    norm: nn.LayerNorm
    wide: Linears
    activation: Callable[[Tensor], Tensor]
    narrow: Linears
    last_norm: nn.LayerNorm

    @classmethod
    def of(cls, encoder: Encoder, layer: Any, at: str, dtype: torch.dtype) -> Layer:
        """The layer whose sites' names begin with `at`."""

        def linears(*names: str) -> Linears:
            sites = [at + name for name in names]
            bases = [encoder.sites[site].base for site in sites]
            return Linears(sites, Frozen(bases, dtype, often=True))

        return cls(
            linears(*(f"attention.self.{name}" for name in ("query", "key", "value"))),
            linears("attention.output.dense"),
            layer.attention.output.LayerNorm,
            linears("intermediate.dense"),
            layer.intermediate.intermediate_act_fn,
            linears("output.dense"),
            layer.output.LayerNorm,
        )


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

    def by_group(self, attention: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        """`attention` of each group's x `[rows, its longest, W]` and what is added to its scores:
        `[T, W]` -> `[T, its width]`.
        """
        found = [
            packed(attention(padded(its, group.gaps, group.shape), group.away), group.gaps)
            for group, its in zip(self.groups, x.split(self.sizes), strict=True)
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
