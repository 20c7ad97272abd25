"""A bank: many adapters, stacked per site, so that each row of a batch can take its own.

Slot 0 holds nothing and leaves the plain encoder; adapter i of the list is slot i + 1. A bank is a
view: parameters, optimizer state and clipping belong to each adapter. N slots, B rows, P positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from adaptx.adapters.lora import LoraBank
from adaptx.adapters.route import Route
from adaptx.errors import OptionError

if TYPE_CHECKING:
    from adaptx.adapters.adapter import Adapter
    from adaptx.encoder.encoder import Encoder


@dataclass(frozen=True)
class Bank:
    """The stacked parts of N - 1 adapters by site, and N, the number of slots."""

    sites: Mapping[str, LoraBank]
    slots: int

    @classmethod
    def of(cls, adapters: Sequence[Adapter], encoder: Encoder) -> Bank:
        """Stack adapters in the order given; sites that none of them has are left out."""
        stacked = {
            name: LoraBank.stack([adapter.sites.get(name) for adapter in adapters], site)
            for name, site in encoder.sites.items()
            if any(name in adapter.sites for adapter in adapters)
        }
        return cls(stacked, len(adapters) + 1)

    def route(
        self,
        adapter_ids: ArrayLike,
        *,
        packed: bool = False,
        training: bool = False,
        fused: bool = True,
    ) -> Route:
        """A route from slots `[B or 1, P]`, or `[B or 1]` for one position.

        Raises OptionError for a slot that the bank doesn't have: an id of -1 would silently mean
        the last one.
        """
        ids = np.asarray(adapter_ids)
        ids = ids[:, None] if ids.ndim == 1 else ids
        whole = np.issubdtype(ids.dtype, np.integer) and ids.ndim == 2 and ids.size > 0
        if not whole or ids.min() < 0 or ids.max() >= self.slots:
            raise OptionError(
                f"adapter_ids of shape {list(ids.shape)} with values {np.unique(ids).tolist()} "
                f"don't fit: slots 0 (none) to {self.slots - 1}, shape [batch or 1, positions]."
            )
        device = next((site.a_NIR.device for site in self.sites.values()), None)
        held = torch.as_tensor(ids.astype(np.int64), device=device)
        return Route(self, held, packed, training, fused)
