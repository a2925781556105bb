import numpy as np
import pytest
import torch
from scipy import stats

from gdrq_mm.analysis import (
    ks_to_uniform,
    normalize_groups,
    plot_weight_distributions,
    weight_histogram,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed)) * 2 - 1


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def brute_force(weight, group_size):
    """Groups one by one, then scipy."""
    filters = weight.double().numpy().reshape(len(weight), -1)
    size = len(filters) if group_size == -1 else group_size
    parts = []
    for start in range(0, len(filters), size):
        group = filters[start:start + size]
        threshold = 2 * np.abs(group).mean()
        parts.append(group / threshold if threshold else group)
    values = np.concatenate([part.ravel() for part in parts])
    return values, stats.kstest(values, 'uniform', args=(-1, 2)).statistic


@pytest.mark.parametrize('group_size', [1, 4, 16, -1])
@pytest.mark.parametrize('make', [uniform, gaussian])
@pytest.mark.parametrize('shape', [(10, 3, 3, 3), (7, 20), (1, 1), (4, 5, 2)])
def test_equals_brute_force(make, shape, group_size):
    weight = make(*shape)
    weight[0] *= 5  # groups of different size
    values, distance = brute_force(weight, group_size)
    assert ks_to_uniform(weight, group_size) == pytest.approx(distance)
    ours = normalize_groups(weight, group_size)
    np.testing.assert_allclose(ours.flatten().numpy(), values, rtol=1e-12)


def test_uniform_is_near_gaussian_is_far():
    scales = torch.logspace(-3, 3, 64).repeat_interleave(4)[:, None]
    flat = uniform(256, 1000) * scales
    bell = gaussian(256, 1000) * scales
    assert ks_to_uniform(flat, 4) < .005
    assert .04 < ks_to_uniform(bell, 4) < .08
    # Without groups the scales mix, and nothing looks uniform any more.
    assert ks_to_uniform(flat, -1) > .2


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    weight = gaussian(8, 50).to(dtype)
    assert ks_to_uniform(weight, 4) == ks_to_uniform(weight.double(), 4)


def test_zero_group():
    weight = torch.zeros(4, 6)
    assert torch.equal(normalize_groups(weight, 2), weight.double())
    assert ks_to_uniform(weight, 2) == .5
    density, _ = weight_histogram(weight, 2)
    assert torch.isfinite(density).all()


def test_histogram():
    weight = uniform(64, 5000)
    density, edges = weight_histogram(weight, 4, bins=20, limit=2.)
    assert density.shape == (20, ) and edges.shape == (21, )
    assert edges[0] == -2 and edges[-1] == 2
    np.testing.assert_allclose(density[6:14].numpy(), .5, atol=.02)
    assert density[:4].sum() == 0 == density[16:].sum()
    assert float(density.sum() * .2) == pytest.approx(1)
    # Weights beyond the limit count in the total.
    weight = torch.tensor([[1., 1., 1., 1., 100.]])
    density, _ = weight_histogram(weight, bins=10, limit=1.)
    assert float(density.sum() * .2) == pytest.approx(.8)


@pytest.mark.parametrize('weight, message', [
    (torch.zeros(0, 3), 'empty'),
    (torch.tensor([[1., float('nan')]]), 'NaN'),
    (torch.tensor([[1., float('inf')]]), 'infinite')])
@pytest.mark.parametrize('function', [ks_to_uniform, weight_histogram])
def test_bad_weights(function, weight, message):
    with pytest.raises(ValueError, match=message):
        function(weight)


def test_plot(tmp_path):
    columns = {'float': dict(a=gaussian(8, 9), b=gaussian(6, 9)),
               '[2, 4]': dict(a=uniform(8, 9), b=uniform(6, 9))}
    path = tmp_path / 'weights.png'
    for _ in range(2):  # replaces what is there
        plot_weight_distributions(columns, dict(a=4, b=-1), path, 'title')
    assert path.read_bytes().startswith(b'\x89PNG')
    assert list(tmp_path.iterdir()) == [path]
