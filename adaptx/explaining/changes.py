"""What an adapter changes on its way through the encoder, on one text.

    layer   |h' - h| / |h|      h the states that leave it without the adapter, h' with it
    site    |y' - y| / |y|      y what the site's Linear gives of the same input without it
    weight  |scale B A| / |W|   the same of the weights, whatever the text

All norms are Frobenius's, over the tokens that are no padding. A layer's change holds that of all
the layers below it; a site's is its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adaptx.encoder.families import model_inputs
from adaptx.encoder.sites import Route, Site, routed
from adaptx.explaining.gradients import route_of

if TYPE_CHECKING:
    from adaptx.adapters.adapter import Adapter
    from adaptx.encoder.encoder import Encoder


@dataclass(frozen=True)
class SiteChange:
    """How much an adapter changes one site: its output on the text, and its weight."""

    site: str
    output: float
    weight: float


@dataclass(frozen=True)
class _Measuring:
    """A route that also writes down how much it changes each site."""

    route: Route
    found: dict[str, float] = field(default_factory=dict)

    def at(self, site: Site, x: Tensor) -> Tensor:
        """The route's own output."""
        y = self.route.at(site, x)
        self.found[site.name] = _ratio(y, site.base(x))
        return y


@torch.no_grad()
def changes(
    encoder: Encoder, adapter: Adapter, ids: list[int]
) -> tuple[list[float], list[SiteChange]]:
    """The change of each layer from the first to the last, and of each site that the adapter has.

    A probe changes nothing, so both are empty; an adapter with a model of its own has no sites.
    """
    if not adapter.sites and adapter.model is None:
        return [], []
    route = route_of(encoder, adapter)
    measuring = _Measuring(route) if route is not None else None
    input_ids = torch.tensor([ids], device=encoder.device)
    inputs = model_inputs(encoder.config, input_ids, torch.ones_like(input_ids))
    plain: Any = encoder.model
    own: Any = adapter.model or encoder.model
    before = plain(**inputs, output_hidden_states=True).hidden_states
    with routed(measuring):
        after = own(**inputs, output_hidden_states=True).hidden_states
    layers = [_ratio(b, a) for a, b in zip(before[1:], after[1:], strict=True)]
    sites = [
        SiteChange(
            name,
            measuring.found[name] if measuring else 0.0,
            float(site.delta().norm() / encoder.sites[name].weight.norm()),
        )
        for name, site in adapter.sites.items()
    ]
    return layers, sites


def _ratio(changed: Tensor, plain: Tensor) -> float:
    return float((changed.float() - plain.float()).norm() / plain.float().norm().clamp(min=1e-12))
