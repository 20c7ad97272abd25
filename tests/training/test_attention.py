"""Attention of the fast path, against torch's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from adaptx.training.attention import attention


def torchs(qkv, away, heads):
    rows, length, _ = qkv.shape
    q, k, v = qkv.view(rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    found = scaled_dot_product_attention(q, k, v, attn_mask=away)
    return found.transpose(1, 2).reshape(rows, length, -1)


def inputs(rows, length, heads, width, dtype):
    torch.manual_seed(length)
    qkv = torch.randn(rows, length, 3 * heads * width).to(dtype).requires_grad_(True)
    counts = torch.randint(1, length + 1, (rows, 1))
    away = (torch.arange(length) >= counts).to(dtype) * torch.finfo(dtype).min
    return qkv, away[:, None, None, :], torch.randn(rows, length, heads * width).to(dtype)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4),
    length=st.integers(1, 80),
    heads=st.integers(1, 3),
    width=st.integers(1, 40),
)
def test_outputs_and_gradients_are_torchs(rows, length, heads, width):
    qkv, away, dy = inputs(rows, length, heads, width, torch.float32)
    wanted, found = torchs(qkv, away, heads), attention(qkv, away, heads)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    wanted, found = (torch.autograd.grad(y, qkv, dy)[0] for y in (wanted, found))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [5, 16, 31, 32, 36, 40, 63, 64, 100])
def test_bf16_is_as_near_as_torchs(length):
    qkv, away, dy = inputs(4, length, 3, 32, torch.bfloat16)

    def results(attend, qkv, away, dy):
        qkv = qkv.detach().requires_grad_(True)
        y = attend(qkv, away, 3)
        dqkv = torch.autograd.grad(y, qkv, dy)[0]
        return torch.cat([y.detach().flatten(), dqkv.flatten()]).double()

    exact = results(torchs, qkv.double(), away.double(), dy.double())
    errors = [
        float((results(attend, qkv, away, dy) - exact).norm() / exact.norm())
        for attend in (attention, torchs)
    ]
    assert errors[0] < 1.5 * errors[1] < 0.03
