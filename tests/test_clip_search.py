"""Exact clip search against brute force over all candidates, in float64."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdrq_mm import clip_search
from gdrq_mm.clip_search import search_clip

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
DRAW = dict(
    normal=lambda rng, shape: rng.normal(size=shape),
    laplace=lambda rng, shape: rng.laplace(size=shape),
    uniform=lambda rng, shape: rng.uniform(-1, 1, size=shape),
    # Many equal values and zeros: kinks that coincide.
    integers=lambda rng, shape: rng.integers(-3, 4, size=shape))


def draw(kind, shape, seed=0, dtype=torch.float32):
    values = DRAW[kind](np.random.default_rng(seed), shape)
    return torch.tensor(values, dtype=dtype)


def loss_of(group, clip, levels):
    """sum |w - Q(w; clip)|, by the formula of Eq. 1."""
    w = group.double().numpy().ravel()
    if clip == 0:
        return np.abs(w).sum()
    step = clip / levels
    return np.abs(w - np.rint(np.clip(w, -clip, clip) / step) * step).sum()


def least_loss(group, levels):
    """The least loss over all candidates ``L * |w_i| / m``."""
    w = np.unique(np.abs(group.double().numpy()))
    clips = {level * value / m for value in w[w > 0] for level in [levels]
             for m in range(1, levels + 1)}
    return min((loss_of(group, clip, levels) for clip in clips), default=0)


def groups_of(weight, group_size):
    return [weight] if group_size == -1 else weight.split(group_size)


def assert_best(weight, clips, levels, group_size):
    groups = groups_of(weight, group_size)
    assert len(groups) == len(clips)
    for group, clip in zip(groups, clips.double().tolist()):
        total = group.double().abs().sum().item()
        assert loss_of(group, clip, levels) == pytest.approx(
            least_loss(group, levels), rel=1e-6, abs=1e-7 * total)


@given(st.sampled_from(sorted(DRAW)), st.integers(1, 7), st.integers(1, 9),
       st.sampled_from([1, 2, 3, 16, -1]), st.integers(2, 5),
       st.integers(0, 10**6))
@PROPERTY
def test_loss_equals_brute_force_over_all_candidates(
        kind, filters, columns, group_size, bits, seed):
    weight = draw(kind, (filters, columns), seed)
    clips = search_clip(weight, bits, group_size)
    assert_best(weight, clips, 2**(bits - 1) - 1, group_size)


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 127),
       st.integers(0, 10**6))
@settings(PROPERTY, max_examples=20)
def test_any_number_of_levels_may_be_asked_for(filters, columns, levels, seed):
    weight = draw('normal', (filters, columns), seed)
    assert_best(weight, search_clip(weight, levels=levels, group_size=1),
                levels, 1)


@given(st.sampled_from(sorted(DRAW)), st.integers(1, 60), st.integers(2, 6),
       st.integers(0, 10**6))
@PROPERTY
def test_search_of_one_large_group_equals_that_by_rows(
        kind, number, bits, seed):
    weight = draw(kind, (1, number), seed)
    whole, levels = search_clip(weight, bits), 2**(bits - 1) - 1
    magnitudes = weight.abs().double()
    largest = magnitudes.max()
    if largest > 0:
        large = clip_search._search_large(magnitudes / largest, 2 * levels)
        assert loss_of(weight, float(large * largest) * levels,
                       levels) == pytest.approx(
            loss_of(weight, whole.item(), levels), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize('bits', [2, 4])
def test_chunks_and_large_groups_give_the_same_clip_values(bits, monkeypatch):
    weight = draw('laplace', (12, 5, 3, 3))
    expected = {size: search_clip(weight, bits, size) for size in (1, 5, -1)}
    for chunk in (1, 60, 1000):  # some groups, one group, less than one
        monkeypatch.setattr(clip_search, 'CHUNK', chunk)
        for group_size, clips in expected.items():
            for ours, theirs, group in zip(
                    search_clip(weight, bits, group_size), clips,
                    groups_of(weight, group_size)):
                levels = 2**(bits - 1) - 1
                assert loss_of(group, ours.item(), levels) == pytest.approx(
                    loss_of(group, theirs.item(), levels), rel=1e-6)


def test_large_group_is_searched_with_bounded_memory(monkeypatch):
    """Only the kinks where the loss may be least are held."""
    monkeypatch.setattr(clip_search, 'CHUNK', 2**12)
    held, follow = [], clip_search._follow

    def counting(kinks, slope, top):
        held.append(kinks.numel())
        return follow(kinks, slope, top)

    monkeypatch.setattr(clip_search, '_follow', counting)
    weight = draw('normal', (1, 2**15))
    clip = search_clip(weight, 4)
    assert 0 < sum(held) < 2 * 7 * weight.numel() / 10
    assert max(held) <= 4 * 2**12
    near = np.linspace(.97, 1.03, 61) * clip.item()
    least = loss_of(weight, clip.item(), 7)
    assert all(loss_of(weight, a, 7) >= least * (1 - 1e-6) for a in near)


def test_best_clip_may_exceed_the_largest_weight():
    """A step of 0.4 loses nothing; no clip up to 0.8 does."""
    weight = torch.tensor([[.8, -.8, .4]])
    clip = search_clip(weight, 3)
    assert clip.item() == pytest.approx(1.2)
    assert all(loss_of(weight, a, 3) > .1 for a in np.linspace(.01, .8, 500))


@pytest.mark.parametrize('levels, best', [(1, 1 / 3), (7, 1 / 15),
                                          (8, 1 / 17)])
def test_uniform_data_lose_one_of_the_number_of_levels(levels, best):
    weight = torch.linspace(-1, 1, 20001)[None]
    clip = search_clip(weight, levels=levels)
    loss = loss_of(weight, clip.item(), levels) / weight.abs().sum().item()
    assert loss == pytest.approx(best, rel=1e-3)


def test_best_clip_of_ternary_normal_data():
    """a minimizes E|x - Q(x; a)|; its condition: P(a/2<x<a) = P(x>a)."""
    weight = draw('normal', (1, 50_000), dtype=torch.float64)
    clip = search_clip(weight, 2).item()
    from scipy.optimize import brentq
    from scipy.stats import norm
    expected = brentq(lambda a: norm.cdf(a) - norm.cdf(a / 2) - norm.sf(a),
                      .5, 2)
    assert clip == pytest.approx(expected, rel=.02)


def test_one_bit_is_the_mean_of_each_group():
    weight = torch.tensor([[1., -2.], [0., 5.], [3., 3.]])
    assert search_clip(weight, 1, 2).tolist() == [2., 3.]


def test_groups_of_zeros_and_of_nan_keep_to_themselves():
    weight = draw('normal', (5, 8))
    alone = search_clip(weight, 4, 1)
    weight[1], weight[2, 3], weight[3, 0] = 0, float('nan'), float('inf')
    clips = search_clip(weight, 4, 1)
    assert clips[1] == 0 and clips[2:4].isnan().all()
    assert torch.equal(clips[[0, 4]], alone[[0, 4]])


@pytest.mark.parametrize('shape, group_size, groups', [
    ((0, 3), 4, 0), ((0, 3), -1, 0), ((5, 0), 2, 3), ((5, 0), -1, 1)])
def test_empty_weights_have_clip_values_of_zero(shape, group_size, groups):
    assert search_clip(torch.zeros(shape), 4,
                       group_size).tolist() == [0.] * groups


@pytest.mark.parametrize('scale', [1e-42, 1e-30, 1e30, 3e38])
def test_extreme_magnitudes_do_not_overflow(scale):
    weight = torch.tensor([[1., .7, .5, .3, -.2]])
    clip = search_clip(weight * scale, 4)
    assert torch.isfinite(clip).all() and clip > 0
    if 1e-38 < scale < 1e38:
        torch.testing.assert_close(clip / scale, search_clip(weight, 4))


@pytest.mark.parametrize('dtype, expected', [
    (torch.float16, torch.float32), (torch.bfloat16, torch.float32),
    (torch.float64, torch.float64)])
def test_result_is_at_least_float32_and_without_gradient(dtype, expected):
    weight = draw('normal', (4, 9)).to(dtype).requires_grad_()
    clip = search_clip(weight, 4, 2)
    assert clip.dtype == expected and not clip.requires_grad


@pytest.mark.parametrize('kwargs, message', [
    (dict(), 'give one'), (dict(bits=4, levels=7), 'give one'),
    (dict(bits=0), 'bits is 0'), (dict(bits=9), 'bits is 9'),
    (dict(levels=0), 'levels is 0'), (dict(levels=128), 'levels is 128')])
def test_bad_bits_and_levels_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        search_clip(torch.ones(1, 1), **kwargs)


def even_loss_of(group, clip, bits):
    """sum |w - q| with the nearest of the 2^bits levels for every weight."""
    levels = (2 * np.arange(2**bits) + 1 - 2**bits) * clip / 2**bits
    distances = np.abs(group.double().numpy().ravel()[:, None] - levels)
    return distances.min(1).sum()


@given(st.sampled_from(sorted(DRAW)), st.integers(1, 5), st.integers(1, 9),
       st.sampled_from([1, 2, -1]), st.integers(1, 3), st.booleans(),
       st.integers(0, 10**6))
@PROPERTY
def test_even_numbers_of_levels_equal_brute_force(
        kind, filters, columns, group_size, bits, large, seed):
    weight = draw(kind, (filters, columns), seed)
    chunk = clip_search.CHUNK
    try:
        if large:
            clip_search.CHUNK, group_size = 1, -1
        clips = search_clip(weight, bits, group_size, even=True)
    finally:
        clip_search.CHUNK = chunk
    for group, clip in zip(groups_of(weight, group_size),
                           clips.double().tolist()):
        w = np.unique(np.abs(group.double().numpy()))
        candidates = [2**bits * value / odd for value in w
                      for odd in range(1, 2**bits, 2)]
        total = group.double().abs().sum().item()
        assert even_loss_of(group, clip, bits) == pytest.approx(
            min(even_loss_of(group, each, bits) for each in candidates),
            rel=1e-6, abs=1e-7 * total)


@pytest.mark.parametrize('options, message', [
    (dict(bits=4, even=True), 'bits is 4, allowed .* 1 to 3'),
    (dict(levels=3, even=True), 'levels is 3, allowed with even: bits')])
def test_even_numbers_of_levels_have_few_bits(options, message):
    with pytest.raises(ValueError, match=message):
        search_clip(draw('normal', (2, 3)), **options)


@pytest.mark.parametrize('group_size', [0, -2])
def test_groups_of_no_size_are_refused(group_size):
    with pytest.raises(ValueError, match='group_size is .*allowed: 1 or more'):
        search_clip(torch.randn(4, 3), 4, group_size=group_size)
