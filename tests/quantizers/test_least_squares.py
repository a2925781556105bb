"""Steps of least squared error against brute force."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gdrq_mm import calibrate, quantize_
from gdrq_mm.quantizers.least_squares import (
    ZERO_POINTS,
    balance,
    few,
    fitted_step,
    least_squares_grid,
    least_squares_step,
    quick_grid,
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


@pytest.mark.parametrize('values', [
    [], [0., 0.], [-3., -1.], [1., float('inf')]])
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


DISTRIBUTIONS = {
    'normal': lambda rng: rng.normal(size=3072),
    'half-normal': lambda rng: np.abs(rng.normal(size=3072)),
    'Laplace': lambda rng: rng.laplace(size=3072),
    'sparse': lambda rng: np.abs(rng.normal(size=3072)) * (
        rng.uniform(size=3072) < .05),
    'one in a hundred is large': lambda rng: rng.normal(size=3072) * (
        1 + 99 * (rng.uniform(size=3072) < .01)),
    'few': lambda rng: 1. + 99 * (np.arange(31) == 7)}


@pytest.mark.parametrize('name', DISTRIBUTIONS)
def test_samples_of_distributions_are_what_they_are(name):
    x = torch.tensor(DISTRIBUTIONS[name](np.random.default_rng(0)))
    expected = x
    if name == 'one in a hundred is large':  # but for the last thousandth
        third = x.abs().sort()[0][-4]
        expected = x.clamp(-third, third)
    assert torch.equal(sample(x)[0], expected)


@pytest.mark.parametrize('name', list(DISTRIBUTIONS)[:4])
@pytest.mark.parametrize('spike', [-1e30, 100., 1e6])
def test_an_outlier_counts_as_the_greatest_of_the_others(name, spike):
    x = torch.tensor(DISTRIBUTIONS[name](np.random.default_rng(0)))
    x[0] = 0
    greatest = float(sample(x).abs().max())
    x[0] = spike
    values = sample(x)[0]
    assert torch.equal(values[1:], x[1:])
    assert values[0] * spike > 0
    assert .8 * greatest < values[0].abs() <= greatest


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_samples_that_are_not_finite_stay_so(bad):
    x = torch.rand(3072)
    x[5] = bad
    assert not sample(x).isfinite().all()


def test_channels_have_outliers():
    x = torch.rand(600, 3)
    x[0] = 1e6
    assert sample(x, channels=True).max() == 1e6


@pytest.mark.parametrize('options', [
    dict(threshold='learned'), dict(type='PACT'), dict(type='LSQPlus')])
@pytest.mark.parametrize('bits', [2, 4, 8])
def test_a_range_does_not_start_from_one_spike(options, bits):
    tops = []
    for spike in (0., 1000.):
        x = torch.tensor(np.random.default_rng(0).normal(
            size=(4, 3, 16, 16)), dtype=torch.float32).abs()
        x[0, 0, 0, 0] = spike
        model = nn.Sequential(nn.Conv2d(3, 2, 3))
        quantize_(model, dict(activation=dict(bits=bits, **options)))
        calibrate(model, [lambda x=x: model(x)])
        tops.append(float(model[0].input_quantizer.value_range()[1]))
    assert tops[1] == pytest.approx(tops[0], rel=.1)


def test_channels_of_zeros_do_not_count():
    values, weights = balance(torch.tensor([[0., 0.], [1., 2.], [-3., 0.]]))
    assert values.tolist() == [[1., 2.], [-3., 0.]]
    assert weights.flatten().tolist() == pytest.approx([1 / 5, 1 / 9])


def test_the_step_of_given_codes_is_that_of_linear_regression():
    rng = np.random.default_rng(0)
    values, codes = rng.normal(size=(2, 5, 30))
    weights = rng.uniform(.1, 2, size=(5, 1))
    root = np.broadcast_to(weights**.5, values.shape)
    expected, *_ = np.linalg.lstsq(
        (root * codes).reshape(-1, 1), (root * values).ravel(), rcond=None)
    assert float(fitted_step(*map(torch.tensor, (values, weights, codes)))
                 ) == pytest.approx(expected[0])
    assert float(fitted_step(*map(
        torch.tensor, (values, weights, 0 * codes)))) == 0


def grid_error(values, step, low, high):
    return float(((values / step).round().clamp(low, high) * step - values
                  ).square().mean())


@pytest.mark.parametrize('high', [3, 15])
@pytest.mark.parametrize('offset', [-1., -.3, 0., .4])
def test_no_zero_point_of_all_is_much_better(high, offset):
    """Of all codes, not only of those that are tried."""
    values = torch.tensor(np.random.default_rng(high).normal(
        offset, .5, size=(1, 400)))
    step, zero = least_squares_grid(values, high)
    found = grid_error(values, step, -zero, high - zero)
    best = min(
        grid_error(values, each, -code, high - code)
        for code in range(high + 1)
        for each in np.geomspace(.02, 2., 300))
    assert found <= 1.15 * best


@pytest.mark.parametrize('high', [3, 15, 255])
@pytest.mark.parametrize('offset', [-1., .2])
def test_the_best_zero_point_of_those_tried_is_taken(high, offset):
    values = torch.tensor(np.random.default_rng(1).normal(
        offset, .5, size=(1, 300)))
    step, zero = least_squares_grid(values, high)
    errors = {}
    for code in ZERO_POINTS:
        for each in (code, high - code):
            if code <= high:
                of_code = least_squares_step(values, -each, high - each)
                errors[each] = grid_error(values, of_code, -each,
                                          high - each) if of_code else 1e9
    assert errors[zero] == min(errors.values())
    assert grid_error(values, step, -zero, high - zero) == errors[zero]


@pytest.mark.parametrize('low, high', [(0., 15.), (-7., 7.), (-3., 12.),
                                       (0., 3.)])
def test_the_quick_step_is_the_minimum_of_a_parabola(low, high):
    """Through the errors of the best step and of its neighbours, each 2^(1/4)
    of the next: found by numpy."""
    for seed in range(8):
        values = torch.tensor(np.random.default_rng(seed).normal(
            .3, 1, size=1500), dtype=torch.float32)
        reach = max(float(values.max()) / high,
                    float(values.min()) / low if low else 0.)
        errors = [grid_error(values.double(), reach * 2**(-index / 4), low,
                             high) for index in range(25)]
        best = int(np.argmin(errors))
        if best in (0, 24):  # the step itself
            middle = best
        else:
            near = [best - 1, best, best + 1]
            a, b, _ = np.polyfit(near, [errors[each] for each in near], 2)
            middle = -b / (2 * a)
        step, _ = quick_grid(values, torch.tensor([low]),
                             torch.tensor([high]))
        assert float(step) == pytest.approx(reach * 2**(-middle / 4),
                                            rel=2e-3)


def test_values_on_the_widest_grid_keep_it():
    """The best step is the first of those tried, and has one neighbour."""
    values = torch.arange(16.).repeat(20)
    step, _ = quick_grid(values, torch.zeros(1), torch.tensor([15.]))
    assert float(step) == 1


@pytest.mark.parametrize('values', [[0., 0., 0.], [-1., -2., 0.]])
def test_the_quick_step_is_zero_without_values_that_have_codes(values):
    step, row = quick_grid(torch.tensor(values), torch.zeros(1),
                           torch.tensor([15.]))
    assert (float(step), row.tolist()) == (0., [0])


def test_a_range_without_codes_for_the_values_is_not_chosen():
    low, high = torch.tensor([0., -8.]), torch.tensor([15., 7.])
    step, row = quick_grid(-torch.rand(200), low, high)
    assert row.tolist() == [1] and float(step) > 0


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('signed', [False, True])
def test_the_quick_step_is_near_the_best(bits, signed):
    levels = 2**(bits - 1) - 1 if signed else 2**bits - 1
    low = -levels if signed else 0
    for seed in range(5):
        values = torch.tensor(np.random.default_rng(seed).standard_t(
            5, size=2000), dtype=torch.float32)
        values = values if signed else values.relu()
        step, row = quick_grid(values, torch.tensor([float(low)]),
                               torch.tensor([float(levels)]))
        found = grid_error(values, step, low, levels)
        best = min(grid_error(values, each, low, levels) for each in
                   np.geomspace(.05, 1.5, 400) * float(
                       values.abs().max()) / levels)
        assert found <= 1.03 * best and row.tolist() == [0]


def test_the_quick_range_is_the_better_one():
    values = torch.linspace(-.2, 1, 1001)
    low, high = torch.tensor([0., -3., -7.]), torch.tensor([15., 12., 8.])
    step, row = quick_grid(values, low, high)
    assert row.tolist() == [1]
    assert float(step) == pytest.approx(1.2 / 15, rel=.1)


def test_few_values_are_spread_and_enough():
    x = torch.arange(64 * 10**4).float()
    values = few(x, bits=4)
    assert 4000 <= len(values) <= 2**13 and float(values[-1]) > .99 * len(x)
    assert len(few(x, bits=8)) > 2**14
    assert torch.equal(few(x[:500], bits=4), x[:500])
