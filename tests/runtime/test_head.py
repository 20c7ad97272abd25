"""The head in NumPy against the one in torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptx.adapters.head import ACTIVATIONS as IN_TORCH
from adaptx.adapters.head import Head as TorchHead
from adaptx.errors import FolderError
from adaptx.runtime.head import ACTIVATIONS, Head


def drawn(seed, width, outputs, activation, norm_eps):
    torch.manual_seed(seed)
    head = TorchHead(width, outputs, activation, norm_eps)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head


def in_numpy(head):
    return Head({name: t.numpy() for name, t in head.state_dict().items()}, head.options)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99),
    width=st.integers(1, 40),
    outputs=st.integers(1, 9),
    rows=st.integers(1, 6),
    activation=st.sampled_from([None, *IN_TORCH]),
    norm_eps=st.sampled_from([None, 1e-12, 1e-5, 0.1]),
)
def test_every_kind_of_head_answers_as_torchs(seed, width, outputs, rows, activation, norm_eps):
    with torch.random.fork_rng():
        head = drawn(seed, width, outputs, activation, norm_eps)
        pooled = torch.randn(rows, width)
    with torch.no_grad():
        wanted = head(pooled).numpy()
    found = in_numpy(head)(pooled.numpy())
    assert found.dtype == np.float32 and found.shape == (rows, outputs)
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-4 * max(1, np.abs(wanted).max()))


def test_both_have_the_same_activations():
    assert ACTIVATIONS.keys() == IN_TORCH.keys()
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    for name, function in ACTIVATIONS.items():
        wanted = IN_TORCH[name](torch.from_numpy(x)).numpy()
        assert function(x).dtype == np.float32
        np.testing.assert_allclose(function(x), wanted, atol=1e-6)


def test_a_rows_logits_dont_depend_on_its_neighbours():
    with torch.random.fork_rng():
        head = in_numpy(drawn(0, 384, 7, "tanh", 1e-5))
    pooled = np.random.default_rng(0).standard_normal((9, 384), np.float32)
    together = head(pooled)
    for row, logits in zip(pooled, together, strict=True):
        assert np.array_equal(head(row[None])[0], logits)


@pytest.mark.parametrize("options", [{}, {"norm_eps": None}, {"norm_eps": 0}])
def test_without_an_epsilon_there_is_no_norm_as_in_torch(options):
    weight = np.eye(2, 3, dtype=np.float32)
    head = Head({"weight": weight, "bias": np.zeros(2, np.float32)}, options)
    assert head(np.array([[5, 6, 7]], np.float32)).tolist() == [[5, 6]]


@pytest.mark.parametrize("options", [{"norm_eps": True}, {"activation": "swish"}])
def test_an_option_that_is_none_is_refused(options):
    with pytest.raises(FolderError, match=next(iter(options))):
        Head({"weight": np.ones((1, 2))}, options)
