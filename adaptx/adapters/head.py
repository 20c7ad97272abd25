"""The head: logits from a pooled state. B rows, H hidden width, L labels.

    logits = W x + b                          a head that adaptx trains
    logits = W norm(act(W1 x + b1)) + b       as transformers' classifiers have it (imported heads)

In head.safetensors: weight `[L, H]`, bias `[L]`; dense.weight `[H, H]`, dense.bias, norm.weight
and norm.bias `[H]` where there are any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptx.errors import FolderError, choices

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": nn.functional.gelu}


class Head(nn.Linear):
    """Linear(H, L); with `activation`, a dense layer before it, and with `norm_eps` a LayerNorm.

    Its state dict has the names of head.safetensors: weight, bias, dense.weight, norm.weight …
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        activation: str | None = None,
        norm_eps: float | None = None,
    ):
        if activation is not None and activation not in ACTIVATIONS:
            raise FolderError(
                f"A head with the activation {activation!r} is none of {choices(ACTIVATIONS)}."
            )
        super().__init__(width, outputs)
        self.activation = activation
        self.dense = nn.Linear(width, width) if activation else None
        self.norm = nn.LayerNorm(width, norm_eps) if norm_eps else None

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled `[B, H]` -> logits `[B, L]`."""
        if self.dense is not None and self.activation is not None:
            pooled = ACTIVATIONS[self.activation](self.dense(pooled))
        if self.norm is not None:
            pooled = self.norm(pooled)
        return super().forward(pooled)

    @property
    def options(self) -> dict[str, Any]:
        """What the manifest says of the head, besides its tensors; {} for a plain Linear."""
        found = {"activation": self.activation, "norm_eps": self.norm.eps if self.norm else None}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def of(
        cls, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any], where: object
    ) -> Head:
        """The head of these tensors; FolderError, naming `where`, when they don't fit together."""
        found = {name: torch.from_numpy(array) for name, array in tensors.items()}
        shapes = {name: list(tensor.shape) for name, tensor in found.items()}
        weight = found.get("weight")
        if weight is None or weight.ndim != 2:
            raise FolderError(f"{where} has {shapes}; a weight [labels, width] is needed.")
        try:
            head = cls(weight.shape[1], weight.shape[0], **options)
            head.load_state_dict(found)
        except (RuntimeError, TypeError) as error:
            said = " ".join(str(error).split())
            raise FolderError(f"{where} has {shapes}, which make no head: {said}") from None
        return head
