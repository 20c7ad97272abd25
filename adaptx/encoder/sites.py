"""Sites: where an adapter may attach. Every Linear of the encoder becomes a `Site` around it.

A site holds no adapter and no state. In a forward pass it asks the *route* of that pass (see
adaptx.adapters.route) for its output; without a route it is the plain Linear:

    y = W x + b            no route
    y = route.at(site, x)  with one

The route travels in a context variable, so that each thread and each forward pass has its own and
no module is ever "in a mode". What recomputes a forward later (gradient checkpointing) captures it
with `checkpoint_contexts`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor, nn


class Route(Protocol):
    """What a forward pass hands down to the sites."""

    def at(self, site: Site, x: Tensor) -> Tensor:
        """The site's output `[…, out]`, given its input x `[…, in]`."""
        ...


_route: ContextVar[Route | None] = ContextVar("adaptx_route", default=None)


@contextmanager
def routed(route: Route | None) -> Iterator[None]:
    """Forward passes inside the block take `route`."""
    token = _route.set(route)
    try:
        yield
    finally:
        _route.reset(token)


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The `context_fn` of torch.utils.checkpoint: a recomputation takes its forward's route."""
    return nullcontext(), routed(_route.get())


class Site(nn.Module):
    """A frozen Linear whose output the route of the forward pass may change."""

    def __init__(self, name: str, base: nn.Linear):
        super().__init__()
        self.name, self.base = name, base
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def weight(self) -> Tensor:
        """The Linear's `[out, in]`; some models ask a Linear for its weight's dtype or device."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """X `[…, in]` -> `[…, out]`."""
        route = _route.get()
        return self.base(x) if route is None else route.at(self, x)


def wrap_sites(model: nn.Module) -> dict[str, Site]:
    """Replace every Linear of `model` by a Site, in place; the sites by their module path."""
    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    sites = {}
    for name, linear in linears:
        parent, _, leaf = name.rpartition(".")
        sites[name] = Site(name, linear)
        setattr(model.get_submodule(parent), leaf, sites[name])
    return sites


@contextmanager
def cast_sites(sites: Iterable[Site], dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, the sites' weights and biases are held in `dtype`; None leaves them as they are.

    Autocast casts a frozen weight at every step; this does it once. What was there comes back.
    """
    kept = [(p, p.data) for site in sites for p in site.base.parameters()] if dtype else []
    try:
        for parameter, data in kept:
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def plain_copy(
    model: nn.Module, deltas: dict[str, Tensor], originals: dict[int, Tensor] | None = None
) -> nn.Module:
    """A deep copy of a wrapped model without sites, `deltas` `[out, in]` added to its Linears.

    `originals` is filled with the model's tensor behind each of the copy's, by the copy's id.
    """
    memo: dict[int, object] = {}
    made = copy.deepcopy(model, memo)
    if originals is not None:
        for tensor in (*model.parameters(), *model.buffers()):
            originals[id(memo[id(tensor)])] = tensor
    for name, site in [(n, m) for n, m in made.named_modules() if isinstance(m, Site)]:
        parent, _, leaf = name.rpartition(".")
        if name in deltas:
            with torch.no_grad():
                site.base.weight += deltas[name].to(site.base.weight)
        setattr(made.get_submodule(parent), leaf, site.base)
    return made
