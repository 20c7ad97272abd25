"""Integrated gradients of a score with respect to the word embeddings (captum).

    contribution_s = (e_s - b_s) · integral over t in [0, 1] of d score / d e_s at b + t (e - b)

Sundararajan, Taly & Yan 2017, arXiv 1703.01365. The contributions add up to the score less that of
the baseline b ("completeness"), but for the error of the sum that stands for the integral, whose
points and weights are Gauss-Legendre's. The baseline has the padding token's embedding in the place
of each token of the text; the special tokens and the prefix stay, and so contribute nothing.

S tokens, H hidden width, B points of the integral.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from adaptx.encoder.families import model_inputs
from adaptx.encoder.sites import routed

if TYPE_CHECKING:
    from adaptx.adapters.adapter import Adapter
    from adaptx.encoder.encoder import Encoder


@dataclass(frozen=True)
class Integrated:
    """`tokens_S` fp64 `[S]`: what each token contributes; the score, and the baseline's."""

    tokens_S: np.ndarray
    score: float
    baseline: float

    @property
    def gap(self) -> float:
        """What the contributions lack of the score less the baseline's."""
        return self.score - self.baseline - float(self.tokens_S.sum())


def integrated_gradients(
    encoder: Encoder,
    adapter: Adapter,
    ids: list[int],
    of_text_S: np.ndarray,
    score: Callable[[Tensor], Tensor],
    *,
    steps: int,
    batch_size: int,
) -> Integrated:
    """The contributions of a window's tokens to `score` of the head's outputs, `[B, …]` -> `[B]`.

    `of_text_S` bool `[S]`: which tokens are the text's, and so may be replaced.
    """
    from captum.attr import IntegratedGradients

    model: Any = adapter.model or encoder.model
    input_ids_1S = torch.tensor([ids], device=encoder.device)
    is_text_1S = torch.from_numpy(of_text_S[None]).to(encoder.device)
    with torch.no_grad():
        embed = model.get_input_embeddings()
        whole = embed(input_ids_1S)
        baseline = embed(input_ids_1S.masked_fill(is_text_1S, encoder.text.pad_id))
        route = route_of(encoder, adapter)

    def forward(embeddings_BSH: Tensor) -> Tensor:
        mask_BS = torch.ones(embeddings_BSH.shape[:2], dtype=torch.int64, device=encoder.device)
        inputs = model_inputs(encoder.config, mask_BS, mask_BS)
        inputs["inputs_embeds"], inputs["input_ids"] = embeddings_BSH, None
        with routed(route):
            states = model(**inputs)[0]
        return score(adapter.outputs(states, mask_BS))

    found = IntegratedGradients(forward).attribute(
        whole, baseline, n_steps=steps, method="gausslegendre", internal_batch_size=batch_size
    )
    with torch.no_grad():
        ends = [float(forward(one)) for one in (whole, baseline)]
    return Integrated(found[0].double().sum(-1).cpu().numpy(), *ends)


def route_of(encoder: Encoder, adapter: Adapter) -> Any:
    """The route of an adapter alone; None for one without sites."""
    return adapter.bank([adapter], encoder).route([1], fused=False) if adapter.sites else None
