"""The head in NumPy: what adaptx.adapters.head is in torch. B rows, H hidden width, L labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from adaptx.errors import FolderError, choices

_erf = np.frompyfunc(math.erf, 1, 1)


def is_factor(value: object) -> bool:
    """Whether a value from a manifest is a number to reckon with."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.asarray(_erf(x / math.sqrt(2)), x.dtype))


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": _gelu,
}


class Head:
    """logits = W norm(act(W1 x + b1)) + b, or W x + b alone (see adaptx.adapters.head).

    `tensors` are those of head.safetensors, `options` what the manifest says of them.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]):
        self.tensors, self.eps = dict(tensors), options.get("norm_eps") or None
        if self.eps is not None and not is_factor(self.eps):
            raise FolderError(f"A head's norm_eps can't be {self.eps!r}.")
        activation = options.get("activation")
        if activation is not None and activation not in list(ACTIVATIONS):
            raise FolderError(
                f"A head with the activation {activation!r} is none of {choices(ACTIVATIONS)}."
            )
        self.activation = ACTIVATIONS[activation] if activation else None
        self.width = self.tensors["weight"].shape[1]

    @property
    def bytes(self) -> int:
        """The memory that its tensors take."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def __call__(self, pooled_BH: np.ndarray) -> np.ndarray:
        """Pooled states fp32 `[B, H]` -> logits fp32 `[B, L]`; each row by itself."""
        return np.stack([self.row(row) for row in pooled_BH])

    def row(self, x: np.ndarray) -> np.ndarray:
        """One row's state `[H]`, or those of its tokens `[S, H]` -> logits `[L]`, or `[S, L]`."""
        t = self.tensors
        if self.activation is not None:
            x = self.activation(x @ t["dense.weight"].T + t["dense.bias"])
        if self.eps is not None:
            away = x - x.mean(-1, keepdims=True)
            x = away / np.sqrt(x.var(-1, keepdims=True) + self.eps)
            x = x * t["norm.weight"] + t["norm.bias"]
        return x @ t["weight"].T + t["bias"]
