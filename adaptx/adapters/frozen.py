"""Frozen Linears that read the same x, side by side as one product, and its gradient.

    y = x W^T + b    dx = dy W    (W `[O, I]` and b `[O]` of all of them, one below another)

torch's products lay out W anew in each call, and add b in a pass of its own. On an x86 processor
W is kept as oneDNN's products want it (the operators `mkldnn::…` that torch's compiler uses): that
saves 3 to 16% of a product's time in bf16, 12 to 39% in fp32 (docs/performance.md).

T rows and tokens, I input, O outputs of all Linears together.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from adaptx.machine import X86


class Frozen:
    """Linears of the same input, in `dtype`; their weights don't change any more.

    `often` says that they are for many products: it pays to lay them out.

    outputs  the width of each
    """

    def __init__(self, bases: Sequence[nn.Linear], dtype: torch.dtype, *, often: bool = False):
        self.bases, self.dtype = list(bases), dtype
        self.outputs = [base.out_features for base in bases]
        self.packs = often and _packs(bases[0].weight.device, dtype)

    def __call__(self, x_TI: Tensor) -> Tensor:
        """`[T, I]` -> `[T, O]`, each Linear's columns after the one's before."""
        if self.packs:
            return _product(x_TI, self._packed, self._b_O)
        return linear(x_TI, self._w_OI, self._b_O)

    def gradient(self, dy_TO: Tensor) -> Tensor:
        """That of x: `[T, O]` -> `[T, I]`."""
        if self.packs:
            return _product(dy_TO, self._packed_back, None)
        return dy_TO @ self._w_OI

    def let_go(self) -> None:
        """Hold nothing: what a later product needs is made again."""
        for name in ("_w_OI", "_b_O", "_packed", "_packed_back"):
            vars(self).pop(name, None)

    # Made when they are first asked for: no more of them is held than is used.
    @cached_property
    def _w_OI(self) -> Tensor:
        return self._weights()

    @cached_property
    def _b_O(self) -> Tensor | None:
        if all(base.bias is None for base in self.bases):
            return None
        each = [
            base.weight.new_zeros(base.out_features) if base.bias is None else base.bias
            for base in self.bases
        ]
        return _joined([bias.detach().to(self.dtype) for bias in each])

    @cached_property
    def _packed(self) -> Tensor:
        return _reordered(self._weights())

    @cached_property
    def _packed_back(self) -> Tensor:
        return _reordered(self._weights().T.contiguous())

    def _weights(self) -> Tensor:
        return _joined([base.weight.detach().to(self.dtype) for base in self.bases])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's layout is to be had: on x86, in fp32, or in bf16 where it has that."""
    x86 = device.type == "cpu" and platform.machine().lower() in X86
    if not (x86 and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype is torch.float32


def _reordered(w_OI: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(w_OI, None)
    return found


def _product(x_TI: Tensor, packed: Tensor, b_O: Tensor | None) -> Tensor:
    nothing_after: tuple[str, list[Any], str] = ("none", [], "")
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, packed, b_O, *nothing_after)
    return found
