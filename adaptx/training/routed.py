"""What a training runs: an adapter on its frozen encoder, on the fast path where that fits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptx.adapters.adapter import Adapter
from adaptx.encoder.encoder import Encoder
from adaptx.training.fast import FastBert, unfit


class Routed(nn.Module):
    """What Accelerate wraps: the adapter, whose parameters train, on the encoder, which is frozen.

    The encoder isn't a submodule: it has nothing to synchronize, and stays in eval(). `fast` asks
    for the fast path, with `dtype` for all that is computed; `why_plain` says why it wasn't taken.
    """

    def __init__(
        self, encoder: Encoder, adapter: Adapter, *, fast: bool, dtype: torch.dtype | None
    ):
        super().__init__()
        self.adapter = adapter
        self.encoder, self.fused = encoder, fast
        self.why_plain = unfit(encoder, [adapter]) if fast else None
        taken = fast and self.why_plain is None
        self.bert = FastBert.of(encoder, dtype or torch.float32) if taken else None

    def forward(self, input_ids: Tensor, mask: Tensor, *heads: Any) -> Any:
        """int64 `[B, S]`, int64 `[B, S]` -> the adapter's outputs, `[B, L]` or `[B, S, L]`.

        `heads` says which rows are whose, to an adapter with several (adaptx.training.shared).
        """
        return self.adapter.outputs(self.hidden(input_ids, mask), mask, *heads)

    def hidden(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """int64 `[B, S]`, int64 `[B, S]` -> token states `[B, S, H]`."""
        if self.bert is not None:
            return self.bert.hidden(input_ids, mask, [(len(input_ids), self.adapter)])
        return self.adapter.hidden(self.encoder, input_ids, mask, fused=self.fused)
