"""Steps of least squared error against brute force."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdrq_mm.quantizers.least_squares import (
    least_squares_grid,
    least_squares_step,
    sample,
)


def error(values, step, low, high):
    """Mean over channels of the squared error over the energy."""
    values = np.asarray(values, float)
    off = np.clip(np.rint(values / step), low, high) * step - values
    energy = (values**2).sum(1)
    return ((off**2).sum(1)[energy > 0] / energy[energy > 0]).sum()


@pytest.mark.parametrize('low, high', [(0, 3), (0, 15), (-2, 1), (-7, 7),
                                       (-1, 14)])
@pytest.mark.parametrize('channels', [1, 6])
def test_no_step_of_a_fine_search_is_much_better(low, high, channels):
    rng = np.random.default_rng(high)
    values = rng.standard_t(4, size=(channels, 300)) * rng.uniform(
        .1, 9, size=(channels, 1))
    found = error(values, float(least_squares_step(
        torch.tensor(values), low, high)), low, high)
    reach = np.abs(values).max()
    best = min(error(values, step, low, high)
               for step in np.geomspace(reach / 1e3, reach, 1500))
    assert found <= 1.02 * best


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-9, 9), min_size=1, max_size=30),
       st.floats(1e-6, 1e6), st.integers(1, 4))
def test_the_step_scales_with_the_values(values, factor, bits):
    values = torch.tensor([values]).double()
    low, high = -2**bits, 2**bits - 1
    step = float(least_squares_step(values, low, high))
    assert step >= 0
    assert float(least_squares_step(values * factor, low, high)) == \
        pytest.approx(step * factor, rel=1e-6)


def test_values_on_a_grid_are_kept():
    values = torch.tensor([[-2., -1., 0., 3., 13.]]).double() * .7
    step, zero = least_squares_grid(values, 15)
    assert (float(step), zero) == (pytest.approx(.7), 2)


@pytest.mark.parametrize('values', [[], [0., 0.], [-3., -1.]])
def test_no_step_without_values_that_have_codes(values):
    assert float(least_squares_step(
        torch.tensor([values]).double(), 0, 15)) == 0


def test_samples_are_spread_and_know_channels():
    x = torch.arange(2 * 3 * 64 * 64.).view(2, 3, 64, 64)
    rows = sample(x, channels=True)
    assert len(rows) == 3 and rows.numel() <= 2**13
    for channel, row in enumerate(rows):
        assert torch.isin(row.float(), x[:, channel]).all()
        assert row[-1] > x[1].min()  # of the last image, too
    assert torch.equal(sample(torch.ones(5, 7, 3), True),
                       torch.ones(3, 35).double())
