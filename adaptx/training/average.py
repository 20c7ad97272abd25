"""The average of the weights along a training, which generalizes better than their last values.

    a_t = a_(t-1) + (p_t - a_(t-1)) · (E + 1) / (t + E)

A polynomial-decay average (Shamir & Zhang 2013, "Stochastic Gradient Descent for Non-smooth
Optimization", section 4): about the last 1/(E + 1) of the steps so far count, so nothing has to be
known of how long the training will be, and what was far from the goal is soon forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

E = 3


class Average:
    """The average of some parameters over the steps so far; empty for no averaging."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters, self.steps = list(parameters), 0
        self.averages: list[Tensor] = []

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters in, after an optimizer step."""
        self.steps += 1
        if not self.averages:
            self.averages = [p.detach().clone() for p in self.parameters]
        share = (E + 1) / (self.steps + E)
        if self.averages:
            torch._foreach_lerp_(self.averages, self.parameters, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters have their averages' values."""
        kept = [parameter.data for parameter in self.parameters]
        try:
            for parameter, average in zip(self.parameters, self.averages, strict=False):
                parameter.data = average
            yield
        finally:
            for parameter, data in zip(self.parameters, kept, strict=True):
                parameter.data = data
