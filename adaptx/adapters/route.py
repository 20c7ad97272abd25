"""A route: which adapters of a bank each row of one forward pass takes.

    adapter_ids   int64 [B or 1, P]: the slots of each row; slot 0 is "nothing here"
                  length 1: the whole batch takes the same; P > 1: a stack, summed for LoRA
    fused         a Linear and its LoRA as one function, where one adapter trains
    packed        the batch is one row [1, T, H] of many texts, and the ids are [T, P], one a token

B rows, S tokens, T packed tokens, P positions, I site input, O site output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from adaptx.adapters.bank import Bank
    from adaptx.encoder.sites import Site


@dataclass(frozen=True)
class Route:
    """Handed down to the sites of one forward pass (adaptx.encoder.sites); never changed.

    `Bank.route` makes one from checked ids.
    """

    bank: Bank
    adapter_ids: Tensor
    packed: bool = False
    training: bool = False
    fused: bool = True

    def at(self, site: Site, x: Tensor) -> Tensor:
        """X `[B, S, I]` -> W x + b `[B, S, O]`, changed by each row's adapters."""
        stacked = self.bank.sites.get(site.name)
        return site.base(x) if stacked is None else stacked.apply(site.base, x, self)
