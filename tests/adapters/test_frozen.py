"""Frozen Linears side by side, against the Linears one by one."""

import copy
import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adaptx.adapters.frozen import Frozen
from adaptx.machine import X86, flags

DTYPES = (torch.float32, torch.bfloat16)


def linears(inputs, outputs, biases, seed=0):
    torch.manual_seed(seed)
    return [nn.Linear(inputs, o, bias=b) for o, b in zip(outputs, biases, strict=True)]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    inputs=st.integers(1, 70),
    shapes=st.lists(st.tuples(st.integers(1, 70), st.booleans()), min_size=1, max_size=3),
    often=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_outputs_and_gradient_are_the_linears(rows, inputs, shapes, often, dtype):
    bases = linears(inputs, *zip(*shapes, strict=True))
    frozen = Frozen(bases, dtype, often=often)
    x = torch.randn(rows, inputs).to(dtype).requires_grad_(True)
    wanted = torch.cat([copy.deepcopy(base).to(dtype)(x) for base in bases], 1)
    dy = torch.randn(wanted.shape).to(dtype)
    (dx,) = torch.autograd.grad(wanted, x, dy)
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.05, "atol": 0.1}
    torch.testing.assert_close(frozen(x.detach()), wanted, **near)
    torch.testing.assert_close(frozen.gradient(dy), dx, **near)
    frozen.let_go()
    torch.testing.assert_close(frozen(x.detach()), wanted, **near)


def test_sums_are_kept_in_fp32_between():
    """A long sum in bf16 would lose what each term adds."""
    (base,) = linears(4096, [8], [True])
    x = torch.randn(64, 4096).bfloat16()
    exact = nn.functional.linear(x.double(), base.weight.bfloat16().double(), base.bias.double())
    found = Frozen([base], torch.bfloat16, often=True)(x)
    assert (found.double() - exact).norm() < 0.005 * exact.norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_linears_weights_are_held_once_where_nothing_is_laid_out(dtype):
    (base,) = linears(8, [4], [True])
    base.to(dtype)
    frozen = Frozen([base], dtype)
    frozen(torch.randn(2, 8).to(dtype))
    assert frozen._w_OI.data_ptr() == base.weight.data_ptr()


def test_weights_are_laid_out_where_the_processor_gains():
    (base,) = linears(8, [4], [True])
    assert not Frozen([base], torch.float32).packs
    assert not Frozen([base], torch.float16, often=True).packs
    if platform.machine().lower() in X86:
        assert Frozen([base], torch.float32, often=True).packs
        if "avx512_bf16" in (flags() or ()):
            assert Frozen([base], torch.bfloat16, often=True).packs
