import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import adaptx as ax
from adaptx.training.average import Average, E


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_the_average_is_that_of_its_formula(values):
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    average, wanted = Average([parameter]), 0.0
    for t, value in enumerate(values, 1):
        parameter.data.fill_(value)
        average.update()
        wanted += (value - wanted) * (E + 1) / (t + E)
    with average.applied():
        np.testing.assert_allclose(parameter.detach().numpy(), wanted, rtol=1e-9, atol=1e-9)
    assert parameter.tolist() == [values[-1]] * 2


def test_what_an_error_leaves_are_the_parameters_themselves():
    parameter = nn.Parameter(torch.ones(2))
    average = Average([parameter])
    average.update()
    parameter.data += 1
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    assert parameter.tolist() == [2, 2]


def test_nothing_is_averaged_when_switched_off(small):
    from tests.training.test_train import fit

    kept = [fit(small, epochs=2, average=on) for on in (True, False)]
    losses = [[e["loss"] for e in a.facts.training["history"]] for a in kept]
    assert losses[0] == losses[1]  # the training itself is the same
    assert any(
        not torch.equal(one, two)
        for one, two in zip(kept[0].weights().values(), kept[1].weights().values(), strict=True)
    )
    assert isinstance(kept[0], ax.Adapter)
