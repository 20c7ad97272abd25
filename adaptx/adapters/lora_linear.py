"""A frozen Linear and one LoRA beside it as one differentiable function: the training path.

    u = x A    y = x W^T + b + u B
    du = dy B^T    dx = dy W + du A^T    dA = x^T du    dB = u^T dy    (W and b get no gradient)

The update is added into the Linear's own output (addmm), so that nothing of its size is made twice,
and only x and u are kept for the backward pass. T rows and tokens, I input, O output, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def lora_linear(x: Tensor, base: nn.Linear, a_IR: Tensor, b_RO: Tensor) -> Tensor:
    """X `[…, I]` -> `[…, O]`, in autocast's dtype where it is on."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, a_IR, b_RO = x.to(dtype), a_IR.to(dtype), b_RO.to(dtype)
    bias = None if base.bias is None else base.bias.to(x.dtype)
    return _LoraLinear.apply(x, base.weight.to(x.dtype), bias, a_IR, b_RO)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_OI: Tensor, bias_O: Tensor | None, a_IR: Tensor, b_RO: Tensor
    ) -> Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        u_TR = x_TI @ a_IR
        y_TO = linear(x_TI, w_OI, bias_O).addmm_(u_TR, b_RO)
        ctx.save_for_backward(x_TI, u_TR, w_OI, a_IR, b_RO)
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, u_TR, w_OI, a_IR, b_RO = ctx.saved_tensors
        dy_TO = dy.reshape(-1, dy.shape[-1])
        du_TR = dy_TO @ b_RO.T
        dx = None
        if ctx.needs_input_grad[0]:  # not below the lowest adapter
            dx = (dy_TO @ w_OI).addmm_(du_TR, a_IR.T).view(*dy.shape[:-1], -1)
        return dx, None, None, x_TI.T @ du_TR, u_TR.T @ dy_TO
