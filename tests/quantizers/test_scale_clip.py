"""Scale-Clip quantizers of weights and activations."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdrq_mm import functional as F
from gdrq_mm.clip_search import search_clip
from gdrq_mm.convert import quantize_
from gdrq_mm.quantizers import QUANTIZERS, QuantizerPair
from gdrq_mm.quantizers.scale_clip import (
    LeastSquaresClipActivation,
    ScaleClipActivation,
    ScaleClipWeight,
    activation,
    default_k,
)

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


def normal(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape),
                        dtype=torch.float32)


def quantizer_of(weight, bits=4, group_size=4, k=2.):
    return ScaleClipWeight(len(weight), bits, group_size, k)


def groups_of(weight, group_size):
    size = len(weight) if group_size == -1 else group_size
    return [weight[i:i + size] for i in range(0, len(weight), size)]


def test_scale_clip_is_registered_for_both_sides():
    assert QUANTIZERS['ScaleClip'] == (ScaleClipWeight, ScaleClipActivation)


def test_a_quantizer_of_ones_own_needs_what_its_pair_says(monkeypatch):

    class Mine(ScaleClipActivation):

        def __init__(self, *, bits, k, lr, threshold, headroom=1.):
            super().__init__(bits, k, lr, headroom, threshold)

    class MyWeight(ScaleClipWeight):

        def __init__(self, *, num_filters, bits, group_size, k, clip,
                     projection, levels):
            super().__init__(num_filters, bits, group_size, k, clip,
                             projection, levels)

    monkeypatch.setitem(QUANTIZERS, 'Mine', QuantizerPair(MyWeight, Mine))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(),
                                torch.nn.Conv2d(4, 4, 1))
    quantize_(model, dict(
        weight=dict(type='Mine', bits=4),
        activation=dict(type='Mine', bits=4, threshold='nonzero'),
        residual=dict(type='Mine', outputs=['2'], threshold='nonzero')))
    assert isinstance(model[0].weight_quantizer, MyWeight)
    assert isinstance(model[0].input_quantizer, Mine)
    output = model[2].output_quantizer.quantizer
    assert isinstance(output, Mine)
    assert output.k_of(True) == 3 * default_k(8, True, of_nonzero=True)
    assert repr(output) == \
        "Mine(bits=8, k=None, lr=0.01, threshold='nonzero', headroom=3.0)"
    assert repr(model[0].input_quantizer) == \
        "Mine(bits=4, k=None, lr=0.01, threshold='nonzero')"


@pytest.mark.parametrize('parent, fields, message', [
    (ScaleClipActivation, {},
     "threshold is 'mse', which LeastSquaresClipActivation computes, but Mine "
     'is a ScaleClipActivation; derive it from LeastSquaresClipActivation, or '
     "ask for another threshold than 'mse' and 'learned'"),
    (LeastSquaresClipActivation, dict(threshold='mean'),
     'derive it from ScaleClipActivation, or ask for '
     "threshold='mse'")])
def test_a_class_that_would_not_be_called_is_refused(
        monkeypatch, parent, fields, message):
    Mine = type('Mine', (parent, ), {})
    monkeypatch.setitem(QUANTIZERS, 'Mine', QuantizerPair(None, Mine))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    with pytest.raises(ValueError, match=message):
        quantize_(model, dict(activation=dict(type='Mine', bits=4, **fields)))


def test_a_class_of_ones_own_for_least_squared_errors_is_called(monkeypatch):
    Mine = type('Mine', (LeastSquaresClipActivation, ), {})
    monkeypatch.setitem(QUANTIZERS, 'Mine', QuantizerPair(None, Mine))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    quantize_(model, dict(activation=dict(type='Mine', bits=4)))
    assert type(model[0].input_quantizer) is Mine


# -- default k ----------------------------------------------------------------

@pytest.fixture(scope='module')
def half_normal():
    """100000 samples of |N(0, 1)|."""
    return np.abs(np.random.default_rng(0).normal(size=100_000))


def best_clip_over_mean(samples, levels):
    """Clip of the least squared error, by trying them all."""
    mean = samples.mean()

    def error(k):
        step = k * mean / levels
        quantized = np.minimum(np.rint(samples / step), levels) * step
        return ((samples - quantized)**2).mean()

    return min(np.arange(1., 6.5, .05), key=error)


@pytest.mark.parametrize('bits', range(2, 9))
def test_default_k_has_the_least_squared_error(half_normal, bits):
    best = best_clip_over_mean(half_normal, 2**(bits - 1) - 1)
    assert default_k(bits, True) == pytest.approx(best, abs=.2)
    # Unsigned inputs are ReLU outputs, half of them zeros: half the mean.
    best = 2 * best_clip_over_mean(half_normal, 2**bits - 1)
    assert default_k(bits, False) == pytest.approx(best, abs=.4)


def test_default_k_grows_with_the_bits():
    for signed in (True, False):
        ks = [default_k(bits, signed) for bits in range(2, 9)]
        assert ks == sorted(set(ks))


def test_own_k_replaces_the_default():
    assert ScaleClipActivation(4, 3.5, .1).k_of(True) == 3.5
    assert ScaleClipActivation(4, None, .1).k_of(True) == default_k(
        4, True, of_nonzero=True)
    assert ScaleClipActivation(4, None, .1, threshold='mean').k_of(
        True) == default_k(4, True)


# -- weights ------------------------------------------------------------------

@pytest.mark.parametrize('group_size', [1, 3, 4, 16, -1])
@pytest.mark.parametrize('bits', range(1, 9))
def test_quantized_weights_lie_on_the_levels_of_their_group(bits, group_size):
    weight = normal(10, 4, 3, 3)
    quantizer = ScaleClipWeight(10, bits, group_size, 2., levels='odd')
    quantized = quantizer(weight)
    top = max(2**(bits - 1) - 1, 1)
    for group, original in zip(groups_of(quantized.double().numpy(),
                                         group_size),
                               groups_of(weight.double().numpy(),
                                         group_size)):
        levels = np.unique(group)
        assert len(levels) <= (2 if bits == 1 else 2 * top + 1)
        largest = (1 if bits == 1 else 2) * np.abs(original).mean()
        codes = levels / (largest / top)
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)
        assert np.abs(codes).max() <= top + 1e-4


@given(st.integers(1, 12), st.integers(1, 8), st.sampled_from([1, 3, 4, -1]),
       st.integers(0, 10**6))
@PROPERTY
def test_codes_times_scale_is_the_quantized_weight(
        filters, bits, group_size, seed):
    weight = normal(filters, 3, 2, seed=seed)
    quantizer = quantizer_of(weight, bits, group_size)
    for _ in range(2):  # before and after training
        codes, scale = quantizer.codes(weight)
        assert scale.shape == (filters, 1, 1)
        assert torch.equal(codes, codes.round())
        assert torch.equal(codes * scale, quantizer(weight))
        torch.testing.assert_close(
            quantizer.decode(codes, quantizer.packed_state(weight)),
            quantizer(weight))
        quantizer.after_step(weight)


@given(st.integers(1, 12), st.integers(1, 8), st.sampled_from([1, 3, 4, -1]),
       st.sampled_from(['threshold', 'search']), st.integers(0, 10**6))
@PROPERTY
def test_even_levels_are_2_to_the_bits_and_odd_ones_one_less(
        filters, bits, group_size, clip, seed):
    weight = normal(filters, 3, 20, seed=seed)
    for levels in ('odd', 'even'):
        quantizer = ScaleClipWeight(filters, bits, group_size, 2., clip,
                                    levels=levels)
        quantizer.after_step(weight)
        codes, scale = quantizer.codes(weight)
        assert torch.equal(codes * scale, quantizer(weight))
        assert torch.equal(quantizer.grid(weight).quantize(weight),
                           quantizer(weight))
        torch.testing.assert_close(
            quantizer.decode(codes, quantizer.packed_state(weight)),
            quantizer(weight))
        scheme = ScaleClipWeight.Scheme(bits=bits, levels=levels)
        steps = (codes - quantizer.lowest_code) / quantizer.code_step
        assert torch.equal(steps, steps.round())
        assert 0 <= steps.min() and steps.max() < scheme.num_levels()
        assert quantizer.lowest_code + quantizer.code_step * (
            scheme.num_levels() - 1) == quantizer.highest_code
        even = 2**bits if bits <= 3 else 2**bits - 1
        assert scheme.num_levels() == (
            even if levels == 'even' or bits == 1 else 2**bits - 1)


def test_levels_stand_in_the_scheme_where_they_differ():
    Scheme = ScaleClipWeight.Scheme
    assert Scheme(bits=2, clip='search', levels='odd').describe() == \
        'ScaleClip 2 bits, group size 4, searched clip'
    with pytest.raises(ValueError, match='bits is 9, allowed: 1 to 8, or '
                                         'None for float$'):
        Scheme(bits=9)
    assert Scheme(bits=2, levels='even').describe() == \
        'ScaleClip 2 bits, group size 4, 4 levels'
    for bits in (1, 4, 8):
        assert Scheme(bits=bits, levels='even').describe() == \
            Scheme(bits=bits).describe()
    with pytest.raises(ValueError, match="levels is 'four', allowed"):
        Scheme(levels='four')


def test_one_bit_is_the_sign_times_the_mean_of_the_group():
    weight = torch.tensor([[1., -2.], [0., 5.]])
    quantized = quantizer_of(weight, bits=1, group_size=1)(weight)
    assert quantized.tolist() == [[1.5, -1.5], [2.5, 2.5]]


def test_one_bit_after_a_projection_uses_the_mean_before_clipping():
    weight = torch.tensor([[1., 1., 1., 9.]])  # mean 3, T = 6
    quantizer = quantizer_of(weight, bits=1)
    quantizer.after_step(weight)
    assert weight.tolist() == [[1., 1., 1., 6.]]
    assert quantizer(weight).tolist() == [[3., 3., 3., 3.]]


def test_clip_is_computed_from_the_weight_before_training_and_not_stored():
    weight = normal(6, 3)
    quantizer = quantizer_of(weight)
    for scale in (1, 10):
        expected = F.clip_threshold(weight * scale, 2., 4)
        assert torch.equal(quantizer.current_clip(weight * scale), expected)
        quantizer(weight * scale)
        assert not quantizer.clip.any()


def test_clip_is_that_of_the_last_projection_afterwards():
    weight = normal(6, 3)
    quantizer = quantizer_of(weight)
    quantizer.after_step(weight)
    stored = quantizer.clip.clone()
    assert torch.equal(quantizer.current_clip(weight * 100), stored)
    assert quantizer(weight * 100).abs().max() <= stored.max() * (1 + 1e-6)


def test_start_step_fixes_the_clip_in_force():
    weight = normal(6, 3)
    quantizer = quantizer_of(weight)
    before = quantizer(weight)
    quantizer.start_step(weight)
    expected = F.clip_threshold(weight, 2., 4)
    assert torch.equal(quantizer.clip.detach(), expected)
    quantizer.start_step(weight * 7)
    assert torch.equal(quantizer.clip.detach(), expected)
    assert torch.equal(quantizer(weight), before)


def test_forget_looks_at_the_clip_anew():
    weight = normal(6, 3)
    quantizer = quantizer_of(weight)
    quantizer.after_step(weight)
    quantizer.clip.data.zero_()
    quantizer.forget()
    assert torch.equal(quantizer.current_clip(weight),
                       F.clip_threshold(weight, 2., 4))


def test_projected_weights_pass_every_gradient():
    weight = normal(6, 30)
    quantizer = quantizer_of(weight, bits=2)
    quantizer.after_step(weight)
    weight.requires_grad_()
    (quantizer(weight) * 3).sum().backward()
    assert (weight.grad == 3).all()


@pytest.mark.parametrize('change', [
    lambda weight: weight.mul_(3),
    lambda weight: setattr(weight, 'data', 3 * weight)],
    ids=['in place', 'another tensor'])
def test_weights_that_changed_since_pass_gradients_inside_only(change):
    weight = torch.nn.Parameter(normal(6, 30))
    quantizer = quantizer_of(weight)
    with torch.no_grad():
        quantizer.after_step(weight)
        assert quantizer.grid(weight).all_inside
        change(weight)
    grid = quantizer.grid(weight)
    grad = grid.gradient(torch.ones_like(weight), weight.detach())
    clip = F.expand_clip(quantizer.clip, weight, 4)
    assert torch.equal(grad, (weight.abs() <= clip).float())
    assert not grad.all()


@pytest.mark.parametrize('projection', [True, False])
@pytest.mark.parametrize('clip', ['threshold', 'search'])
def test_only_weights_projected_to_their_clip_count_as_inside(
        projection, clip):
    weight = normal(6, 30)
    quantizer = ScaleClipWeight(6, 4, 4, 2., clip=clip, projection=projection)
    quantizer.start_step(weight)
    quantizer.after_step(weight)
    # The end of a projection is 2 * mean|G|, that of a search another.
    assert quantizer.grid(weight).all_inside == (
        projection and clip == 'threshold')


def test_a_device_is_asked_for_no_clip_after_a_step(monkeypatch):
    weight = normal(6, 30)
    quantizer = quantizer_of(weight)
    quantizer.after_step(weight)
    monkeypatch.setattr(torch.Tensor, 'any', None)  # it would wait
    assert torch.equal(quantizer.current_clip(weight), quantizer.clip)


# -- clip-in-forward and searched clip values ---------------------------------

def without_projection(weight, **kwargs):
    return ScaleClipWeight(len(weight), 4, 4, 2., projection=False, **kwargs)


def test_without_projection_the_weight_stays_and_the_threshold_moves():
    weight = normal(6, 3)
    before, quantizer = weight.clone(), without_projection(weight)
    for scale in (1, 10):
        weight *= scale
        quantizer.after_step(weight)
        assert torch.equal(weight, before * scale)
        assert torch.equal(quantizer.clip, F.clip_threshold(weight, 2., 4))
    assert torch.equal(quantizer(weight), F.linear_quantize(
        weight, F.expand_clip(quantizer.clip, weight, 4), 4))


def test_without_projection_the_reshaped_weight_is_clipped_in_the_forward():
    weight = normal(8, 30).requires_grad_()
    quantizer = without_projection(weight)
    clip = F.expand_clip(F.clip_threshold(weight, 2., 4), weight, 4)
    reshaped = quantizer(weight, rounding=False)
    assert torch.equal(reshaped, torch.clamp(weight, -clip, clip))
    assert (reshaped.abs() == clip).any()
    reshaped.sum().backward()
    assert torch.equal(weight.grad, (weight.abs() <= clip).float())


@pytest.mark.parametrize('kwargs', [
    dict(), dict(clip='search'), dict(clip='search', projection=False)])
def test_projected_or_searched_weights_are_reshaped_as_they_are(kwargs):
    weight = normal(8, 3)
    quantizer = ScaleClipWeight(8, 4, 4, 2., **kwargs)
    assert quantizer(weight, rounding=False) is weight


@pytest.mark.parametrize('group_size', [1, 4, -1])
@pytest.mark.parametrize('bits', [1, 2, 4])
def test_searched_clip_is_that_of_the_least_loss(bits, group_size):
    weight = normal(10, 5)
    quantizer = ScaleClipWeight(10, bits, group_size, 2., clip='search',
                                levels='odd')
    quantized = quantizer(weight)
    clip = search_clip(weight, bits, group_size)
    assert torch.equal(quantizer.clip.detach(), clip)  # stored at first use
    assert torch.equal(quantized, F.linear_quantize(
        weight, F.expand_clip(clip, weight, group_size), bits))
    if bits > 1:
        threshold = ScaleClipWeight(10, bits, group_size, 2., levels='odd')
        assert F.quantized_loss(weight, quantized) <= F.quantized_loss(
            weight, threshold(weight))


@pytest.mark.parametrize('projection', [True, False])
def test_clip_is_searched_anew_every_so_many_steps(projection, monkeypatch):
    monkeypatch.setattr(ScaleClipWeight, 'SEARCH_INTERVAL', 3)
    weight = normal(6, 3)
    quantizer = ScaleClipWeight(6, 4, 4, 2., 'search', projection)
    quantizer(weight)
    for step in range(1, 8):
        weight.mul_(1.5)
        threshold = F.expand_clip(F.clip_threshold(weight, 2., 4), weight, 4)
        before, clip = weight.clone(), quantizer.clip.detach().clone()
        quantizer.after_step(weight)
        torch.testing.assert_close(
            weight, torch.clamp(before, -threshold, threshold)
            if projection else before, rtol=1e-6, atol=0)
        expected = search_clip(weight, 4, 4) if step % 3 == 0 else clip
        assert torch.equal(quantizer.clip.detach(), expected)
    assert quantizer.num_steps == 7


def test_number_of_steps_is_read_anew_after_loading(monkeypatch):
    monkeypatch.setattr(ScaleClipWeight, 'SEARCH_INTERVAL', 3)
    weight = normal(6, 3)
    one, other = (ScaleClipWeight(6, 4, 4, 2., 'search', False)
                  for _ in range(2))
    for _ in range(2):
        one(weight)
        one.after_step(weight)
        other.after_step(weight)
    other.load_state_dict(one.state_dict())
    other.forget()
    for quantizer in (one, other):
        quantizer.after_step(weight * 2)
        assert torch.equal(quantizer.clip.detach(),
                           search_clip(weight * 2, 4, 4))


def test_restart_searches_at_the_next_use_and_leaves_thresholds():
    weight = normal(6, 3)
    searched = ScaleClipWeight(6, 4, 4, 2., clip='search')
    plain = quantizer_of(weight)
    for quantizer in (searched, plain):
        quantizer(weight)
        quantizer.after_step(weight)
        quantizer.restart()
    assert not searched.clip.any() and plain.clip.all()
    searched(weight * 3)
    assert torch.equal(searched.clip.detach(), search_clip(weight * 3, 4, 4))


def test_searched_clip_is_stored_in_inference_mode():
    weight = normal(6, 3)
    quantizer = ScaleClipWeight(6, 4, 4, 2., clip='search')
    with torch.inference_mode():
        quantizer(weight)
    assert quantizer.clip.all()
    quantizer(weight.requires_grad_()).sum().backward()


def test_group_of_zeros_comes_back_to_life():
    weight = normal(8, 3)
    weight[:4] = 0
    quantizer = quantizer_of(weight)
    quantizer.after_step(weight)
    assert not quantizer(weight)[:4].any()
    leaf = weight.clone().requires_grad_()
    quantizer(leaf).sum().backward()
    assert (leaf.grad == 1).all()
    weight[:4] = normal(4, 3)
    quantizer.after_step(weight)
    assert quantizer(weight)[:4].any() and (quantizer.clip > 0).all()


def test_all_zero_weight_gives_zeros_and_no_nan():
    for bits in range(1, 9):
        weight = torch.zeros(6, 3)
        quantizer = quantizer_of(weight, bits)
        assert not quantizer(weight).any()
        quantizer.after_step(weight)
        assert not quantizer(weight).any() and not weight.any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16,
                                   torch.float64])
def test_dtype_of_the_weight_is_kept(dtype):
    weight = normal(6, 3).to(dtype)
    quantizer = quantizer_of(weight)
    assert quantizer(weight).dtype == dtype
    quantizer.after_step(weight)
    assert quantizer(weight).dtype == weight.dtype == dtype


# -- activations --------------------------------------------------------------

def with_threshold(clip, bits=2, signed=False, updates=1):
    quantizer = ScaleClipActivation(bits, None, .01)
    quantizer.clip.fill_(clip)
    quantizer.signed.fill_(signed)
    quantizer.num_updates.fill_(updates)
    return quantizer


def test_activation_passes_until_a_threshold_is_there():
    quantizer = ScaleClipActivation(2, None, .01)
    x = normal(5)
    assert not quantizer.initialized
    assert quantizer(x) is x and quantizer(x, rounding=False) is x


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('signed', [False, True])
def test_activation_lies_on_its_grid(bits, signed):
    x = normal(500) * 2
    top = 2**(bits - 1) - 1 if signed else 2**bits - 1
    step = 1.5 / top
    expected = np.rint(np.clip(x.double().numpy(), -1.5 if signed else 0,
                               1.5) / step) * step
    quantizer = with_threshold(1.5, bits, signed)
    np.testing.assert_allclose(quantizer(x), expected, rtol=1e-5)
    np.testing.assert_array_equal(
        quantizer(x, rounding=False), np.clip(
            x.numpy(), -1.5 if signed else 0, 1.5))


def test_activation_statistics_add_up():
    quantizer = ScaleClipActivation(4, None, .01)
    parts = [normal(4, 3), normal(7, seed=1).abs() + 1, torch.zeros(0, 3)]
    for x in parts:
        quantizer.observe(x)
    values = np.concatenate([x.double().flatten().numpy() for x in parts])
    assert quantizer.seen[0].item() == pytest.approx(np.abs(values).sum())
    assert quantizer.seen[1].item() == values.size
    assert quantizer.seen[2].item() == np.count_nonzero(values)
    assert quantizer.seen[3].item() == (values < 0).sum()
    assert 'seen' not in quantizer.state_dict()


def test_activation_statistics_do_not_overflow_in_half_precision():
    quantizer = ScaleClipActivation(4, None, .01)
    quantizer.observe(torch.full((5000, ), 100., dtype=torch.float16))
    assert quantizer.seen.tolist() == [500000., 5000., 5000., 0.]


def test_observing_keeps_no_graph():
    quantizer = ScaleClipActivation(4, None, .01)
    quantizer.observe(normal(3).requires_grad_())
    assert not quantizer.seen.requires_grad


def test_clipped_fraction_counts_the_elements_that_are_not_zero():
    x = torch.tensor([0., 0., .5, 1., 1.5, -2.])
    assert with_threshold(1.).clipped_fraction(x) == .5
    assert with_threshold(1.).clipped_fraction(torch.zeros(3)) == 0


def test_statistics_that_the_kernels_take_move_the_threshold():
    ours, plain = (ScaleClipActivation(4, None, .01) for _ in range(2))
    for step in range(45):
        x = (1 + step) * normal(3000, seed=step)
        plain.observe(x)
        where = ours.observe_later(x)
        assert (where is not None) == ours.settled
        if where is not None:
            ours.grid(where).quantize(x)
        for quantizer in (ours, plain):
            type(quantizer).update_([quantizer])
    assert ours.settled and ours.clip > 1
    assert ours.clip == pytest.approx(float(plain.clip), rel=1e-4)


def test_activation_forgets_what_it_read():
    quantizer = with_threshold(1., updates=50)
    x = torch.tensor([-1., 1.])
    assert quantizer(x).tolist() == [0., 1.]
    quantizer.signed.fill_(True)
    quantizer.forget()
    assert quantizer(x).tolist() == [-1., 1.]


def test_activation_gradient_is_straight_through_inside():
    x = torch.tensor([-.1, 0., .4, 1., 1.1], requires_grad=True)
    with_threshold(1.)(x).sum().backward()
    assert x.grad.tolist() == [0., 1., 1., 1., 0.]


def test_clipped_activation_passes_gradients_inside():
    x = torch.tensor([-.1, .1, .4, .9, 1.1], requires_grad=True)
    with_threshold(1.)(x, rounding=False).sum().backward()
    assert x.grad.tolist() == [0., 1., 1., 1., 0.]


def test_nan_activation_stays_visible():
    assert math.isnan(with_threshold(1.)(torch.tensor(float('nan'))))


# -- thresholds of non-zero values --------------------------------------------

@pytest.mark.parametrize('site', ['input', 'relu'])
@pytest.mark.parametrize('zeros', [0, .5, .9])
def test_zeros_do_not_move_the_mean_of_non_zeros(site, zeros):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 20, 20, generator=generator).abs()
    x *= torch.rand(x.shape, generator=generator) >= zeros
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(3, 4, 1))
    quantize_(model, dict(
        weight=dict(bits=4),
        activation=dict(bits=4, site=site, threshold='nonzero', lr=1.)))
    optimizer = torch.optim.SGD(model.parameters(), 0.)
    quantizer = next(each for each in model.modules()
                     if isinstance(each, ScaleClipActivation))
    values = x.double()[x > 0]
    for _ in range(quantizer.SIGN_UPDATES + 2):  # the last ones in kernels
        model(x).sum().backward()
        optimizer.step()
        assert float(quantizer.clip) == pytest.approx(
            1.1 * 3.65 * float(values.mean()), rel=1e-5)


def test_nothing_but_zeros_gives_a_threshold_of_zero():
    quantizer = ScaleClipActivation(4, None, .1, threshold='nonzero')
    quantizer.observe(torch.zeros(7))
    ScaleClipActivation.update_([quantizer])
    assert quantizer.clip == 0 and quantizer(torch.zeros(3)).tolist() == [
        0, 0, 0]


def test_quantizers_of_both_means_are_updated_together():
    x = torch.tensor([0., 0., 3., 1.])
    quantizers = [ScaleClipActivation(4, 1., 1., threshold=threshold)
                  for threshold in ('mean', 'nonzero')]
    for quantizer in quantizers:
        quantizer.observe(x)
    ScaleClipActivation.update_(quantizers)
    assert [float(quantizer.clip) for quantizer in quantizers] == [1., 2.]


def test_the_kind_of_threshold_stands_in_the_scheme():
    Scheme = ScaleClipActivation.Scheme
    assert Scheme(bits=4, threshold='nonzero', k=2.).describe() == \
        'ScaleClip 4 bits, threshold nonzero'
    assert Scheme(bits=4).describe() == 'ScaleClip 4 bits, threshold mse'
    assert Scheme(bits=4, threshold='mean').describe() == 'ScaleClip 4 bits'
    with pytest.raises(ValueError, match="threshold is 'max', allowed"):
        Scheme(threshold='max')


def test_one_value_that_is_not_zero_is_the_mean_of_its_kind():
    quantizer = ScaleClipActivation(4, None, 1., threshold='nonzero')
    quantizer.observe(torch.tensor([0., 0., 3., 0.]))
    ScaleClipActivation.update_([quantizer])
    assert quantizer.clip == pytest.approx(
        3 * default_k(4, False, of_nonzero=True))


def test_statistics_are_those_of_all_ranks(monkeypatch):
    values = torch.tensor([1., 2., 3., -6.])
    alone = ScaleClipActivation(4, 2., 1.)
    alone.observe(torch.cat([values, values]))
    ScaleClipActivation.update_([alone])

    def sum_over_ranks_(seen):  # of another rank that saw as much
        seen += torch.tensor([[6., 2., 2., 2.]])

    monkeypatch.setattr(activation, 'sum_over_ranks_', sum_over_ranks_)
    shared = ScaleClipActivation(4, 2., 1.)
    shared.observe(values[[0, 1]])
    ScaleClipActivation.update_([shared])
    assert shared.signed and alone.signed
    assert shared.clip == pytest.approx((6 + 3) / 4 * 2)


def test_the_first_batches_are_averaged_also_where_they_are_zeros():
    quantizer = ScaleClipActivation(4, 1., .01, threshold='mean')
    for value in (3., 0., 6.):
        quantizer.observe(torch.full((8, ), value))
        ScaleClipActivation.update_([quantizer])
    assert float(quantizer.clip) == pytest.approx(3.)


@pytest.mark.parametrize('target, share', [(10.9, .99), (11.1, 1.), (1e3, 1.)])
def test_an_outlier_counts_as_11_times_the_threshold(target, share):
    """With the step of Eq. 10 it moves the threshold by a tenth."""
    quantizer = ScaleClipActivation(4, 1., .01)
    for _ in range(120):
        quantizer.observe(torch.ones(8))
        ScaleClipActivation.update_([quantizer])
    quantizer.observe(torch.full((8, ), target))
    ScaleClipActivation.update_([quantizer])
    assert float(quantizer.clip) == pytest.approx(1 + .1 * share)


def test_files_hold_what_the_format_says():
    activation_entries = {'clip', 'signed', 'num_updates'}
    assert ScaleClipActivation(4, None, .1).state_dict().keys() == \
        activation_entries
    assert quantizer_of(normal(6, 30)).state_dict().keys() == {'clip'}
    assert ScaleClipWeight(6, 4, 4, 2., clip='search').state_dict(
        ).keys() == {'clip', 'num_steps'}


def test_what_was_asked_for_stands_in_the_text():
    plain = dict(num_filters=2, bits=4, group_size=2, k=2.)
    assert ScaleClipWeight(**plain).extra_repr() == \
        'bits=4, group_size=2, k=2.0'
    assert ScaleClipWeight(
        **plain, clip='search', projection=False).extra_repr() == \
        "bits=4, group_size=2, k=2.0, clip='search', projection=False"
    assert ScaleClipWeight(
        2, bits=2, group_size=2, k=2., levels='even').extra_repr() == \
        "bits=2, group_size=2, k=2.0, levels='even'"
    assert ScaleClipActivation(
        4, None, .01, threshold='mean').extra_repr() == \
        'bits=4, k=None, lr=0.01'
    assert ScaleClipActivation(
        4, None, .01, 3., threshold='nonzero').extra_repr() == \
        "bits=4, k=None, lr=0.01, threshold='nonzero', headroom=3.0"


def test_layers_that_share_a_weight_know_that_it_lies_inside():
    """Also that which did not project it itself."""
    weight = torch.randn(4, 6)
    first, second = (ScaleClipWeight(4, 4, 2, k=1.) for _ in range(2))
    first.after_step(weight)
    second.share(first, weight)
    assert torch.equal(first.clip, second.clip)
    assert second.grid(weight).all_inside
    weight += 1
    assert not second.grid(weight).all_inside
