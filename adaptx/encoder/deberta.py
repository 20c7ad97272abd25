"""DeBERTa's relative attention, each row with its own adapter (He et al. 2021, arXiv 2006.03654).

    score[i, j] = (q_i · k_j  +  q_i · kr[d(i, j)]  +  k_j · qr[d(j, i)]) / sqrt(D · terms)

kr and qr are projections of the table of relative positions, through sites: position projections of
their own, or the query and key projections themselves (`share_att_key`). transformers projects the
table once and repeats it for each row; with a route a site's output differs from row to row.

B rows, N heads, S tokens, D head width, P relative positions, H hidden width.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

from torch import Tensor, nn


def route_positions(model: nn.Module) -> None:
    """Let each relative attention of a model, if it has any, take a position table for each row."""
    for module in model.modules():
        if hasattr(module, "disentangled_attention_bias"):
            module.disentangled_attention_bias = MethodType(_position_scores, module)


def _position_scores(
    attention: Any, query: Tensor, key: Tensor, distance: Tensor, table: Tensor, terms: int
) -> Tensor | int:
    """The last two terms of the score.

    query and key `[B·N, S, D]`, distance int64 `[1, S, S]`, table `[P, H]` -> `[B·N, S, S]`; 0 for
    a model without either term. Without a route it is what transformers computes, bit for bit.
    """
    heads, half = attention.num_attention_heads, attention.pos_ebd_size
    query_BNSD, key_BNSD = (x.view(-1, heads, *x.shape[1:]) for x in (query, key))
    table_1PH, distance = table[: 2 * half].unsqueeze(0), distance.unsqueeze(1)
    scale = math.sqrt(query.shape[-1] * terms)
    parts = []
    if "c2p" in attention.pos_att_type:
        project = attention.key_proj if attention.share_att_key else attention.pos_key_proj
        parts.append(_picked(query_BNSD, project(table_1PH), distance + half) / scale)
    if "p2c" in attention.pos_att_type:
        project = attention.query_proj if attention.share_att_key else attention.pos_query_proj
        picked = _picked(key_BNSD, project(table_1PH), half - distance)
        parts.append(picked.transpose(-1, -2) / scale)
    return sum(parts).flatten(0, 1) if parts else 0


def _picked(states: Tensor, positions: Tensor, index: Tensor) -> Tensor:
    """Of each state's product with every position, those at `index`.

    states `[B, N, S, D]`, positions `[B or 1, P, N·D]`, index `[1, 1, S, S]` -> `[B, N, S, S]`.
    """
    heads_D = (*positions.shape[:2], states.shape[1], states.shape[3])
    products = states @ positions.view(heads_D).permute(0, 2, 3, 1)
    index = index.clamp(0, positions.shape[1] - 1)
    return products.gather(-1, index.expand(*states.shape[:2], -1, -1))
