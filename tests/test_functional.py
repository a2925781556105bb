"""Every function against brute force in numpy float64."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdrq_mm import functional as F

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
GROUP_SIZES = [1, 4, 16, -1]
SIGNED_AND_BITS = [(True, bits) for bits in range(2, 9)] + \
    [(False, bits) for bits in range(2, 9)]
TINY = torch.finfo(torch.float32).tiny
MAX = torch.finfo(torch.float32).max


# -- oracles: numpy float64, one group and one element at a time --------------

def groups_of(x, group_size):
    """Lists of filter indices."""
    filters = list(range(len(x)))
    size = max(len(filters), 1) if group_size == -1 else group_size
    return [filters[i:i + size] for i in range(0, len(filters), size)]


def mean_abs_oracle(x, group_size):
    x = np.asarray(x, dtype=np.float64)
    return np.array([
        sum(abs(value) for i in group for value in x[i].ravel())
        / max(sum(x[i].size for i in group), 1)
        for group in groups_of(x, group_size)])


def quantize_oracle(x, clip, bits, signed=True):
    """Eq. 1 and 2; the 1-bit rule: the sign, sign(0) = +1."""
    if signed and bits == 1:
        return -clip if x < 0 else clip
    top = 2**(bits - 1) - 1 if signed else 2**bits - 1
    low = -clip if signed else 0.
    if clip == 0:
        return 0.
    scale = clip / top
    return float(np.rint(min(max(x, low), clip) / scale)) * scale


def seeded(*shape, seed=0, dtype=torch.float32):
    values = np.random.default_rng(seed).normal(size=shape)
    return torch.tensor(values, dtype=dtype)


@st.composite
def weights(draw, max_filters=9):
    """A weight of 1 to 4 dimensions and a group size."""
    shape = (draw(st.integers(1, max_filters)), *draw(
        st.lists(st.integers(1, 4), max_size=3)))
    scale = draw(st.sampled_from([1e-20, 1e-3, 1., 1e4]))
    x = seeded(*shape, seed=draw(st.integers(0, 10**6))) * scale
    return x, draw(st.sampled_from([1, 2, 3, 4, 16, -1]))


# -- groups -------------------------------------------------------------------

@pytest.mark.parametrize('filters', [0, 1, 3, 4, 5, 8, 17])
@pytest.mark.parametrize('group_size', [1, 2, 3, 4, 16, -1])
def test_num_groups_counts_the_shorter_last_group(filters, group_size):
    assert F.num_groups(filters, group_size) == len(
        groups_of(range(filters), group_size))


@pytest.mark.parametrize('bits, signed, levels', [
    (1, True, 0), (2, True, 1), (4, True, 7), (8, True, 127),
    (1, False, 1), (2, False, 3), (4, False, 15), (8, False, 255)])
def test_num_levels_are_those_of_eq_2(bits, signed, levels):
    assert F.num_levels(bits, signed) == levels
    if signed:  # unless it is said otherwise
        assert F.num_levels(bits) == levels


@pytest.mark.parametrize('group_size', [1, 2, 3, 4, 16, -1])
@pytest.mark.parametrize('shape', [(7, ), (8, 3), (5, 2, 3, 3)])
def test_expand_clip_gives_each_filter_the_value_of_its_group(
        shape, group_size):
    x = torch.zeros(shape)
    groups = groups_of(x, group_size)
    clip = torch.arange(1., len(groups) + 1)
    expanded = F.expand_clip(clip, x, group_size)
    assert expanded.shape == (shape[0], *(1, ) * (len(shape) - 1))
    for index, group in enumerate(groups):
        assert all(expanded.flatten()[i] == index + 1 for i in group)


# -- mean_abs, clip_threshold, scale_clip -------------------------------------

@given(weights())
@PROPERTY
def test_mean_abs_equals_brute_force(case):
    x, group_size = case
    np.testing.assert_allclose(
        F.mean_abs(x, group_size), mean_abs_oracle(x, group_size), rtol=1e-5)


@pytest.mark.parametrize('group_size', GROUP_SIZES)
@pytest.mark.parametrize('dtype, expected', [
    (torch.float16, torch.float32), (torch.bfloat16, torch.float32),
    (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_mean_abs_is_computed_in_at_least_float32(dtype, expected, group_size):
    # In float16 the sum of 4096 values of 100 would overflow.
    x = seeded(6, 4096, dtype=dtype) * 100
    mean = F.mean_abs(x, group_size)
    assert mean.dtype == expected
    np.testing.assert_allclose(
        mean, mean_abs_oracle(x.double(), group_size), rtol=1e-5)


@pytest.mark.parametrize('group_size', GROUP_SIZES)
@pytest.mark.parametrize('shape', [(0, 3), (5, 0), (0, )])
def test_mean_abs_of_nothing_is_zero(shape, group_size):
    for dtype in (torch.float16, torch.float32, torch.float64):
        mean = F.mean_abs(torch.zeros(shape, dtype=dtype), group_size)
        assert mean.tolist() == [0.] * F.num_groups(shape[0], group_size)
        assert mean.dtype == torch.promote_types(dtype, torch.float32)


@given(weights(), st.floats(0.1, 10))
@PROPERTY
def test_clip_threshold_is_k_times_the_mean(case, k):
    x, group_size = case
    np.testing.assert_allclose(
        F.clip_threshold(x, k, group_size),
        k * mean_abs_oracle(x, group_size), rtol=1e-5)


def test_clip_threshold_carries_no_gradient():
    x = seeded(4, 4).requires_grad_()
    assert not F.clip_threshold(x, 2.).requires_grad


@pytest.mark.parametrize('group_size', [2, -1])
def test_clip_threshold_stays_finite_where_the_sum_overflows(group_size):
    x = torch.full((4, 8), MAX)
    clip = F.clip_threshold(x, 2., group_size)
    assert (clip == MAX).all()
    assert torch.equal(F.scale_clip(x, clip, group_size), x)


def test_uniform_data_are_not_clipped_at_k_2():
    x = torch.linspace(-1, 1, 10001, dtype=torch.float64).view(1, -1)
    assert F.clip_threshold(x, 2.).item() == pytest.approx(1, rel=1e-3)


@given(weights(), st.floats(0.1, 3))
@PROPERTY
def test_scale_clip_clips_every_group_to_its_own_bound(case, k):
    x, group_size = case
    clip = F.clip_threshold(x, k, group_size)
    clipped = F.scale_clip(x, clip, group_size)
    for value, group in zip(clip, groups_of(x, group_size)):
        for i in group:
            expected = np.clip(x[i].numpy(), -value.item(), value.item())
            np.testing.assert_array_equal(clipped[i], expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16,
                                   torch.float32, torch.float64])
def test_scale_clip_keeps_the_dtype(dtype):
    x = seeded(5, 3, dtype=dtype)
    assert F.scale_clip(x, F.clip_threshold(x, 1., 2), 2).dtype == dtype


def test_a_whole_layer_is_one_group_unless_it_is_said_otherwise():
    x = seeded(5, 7)
    clip = F.clip_threshold(x, 1.)
    assert clip.tolist() == pytest.approx(mean_abs_oracle(x, -1).tolist())
    assert torch.equal(F.mean_abs(x), F.mean_abs(x, -1))
    assert torch.equal(F.scale_clip(x, clip), x.clamp(-clip, clip))


# -- even numbers of levels -----------------------------------------------

@given(st.integers(0, 10**6), st.integers(1, 3),
       st.sampled_from([1e-30, 1e-3, 0.7, 1., 1e5, 1e37]))
@PROPERTY
def test_even_levels_equal_brute_force(seed, bits, clip):
    x = seeded(200, seed=seed, dtype=torch.float64) * clip
    levels = [(2 * c + 1) * clip / 2**bits
              for c in range(-2**(bits - 1), 2**(bits - 1))]
    expected = [min(levels, key=lambda level: abs(v - level))
                for v in x.tolist()]
    clip = torch.tensor(clip, dtype=torch.float64)
    quantized = F.linear_quantize(x, clip, bits, even=True)
    np.testing.assert_allclose(quantized, expected, rtol=1e-12)
    codes, scale = F.quantize_codes(x, clip, bits, even=True)
    assert torch.equal(codes * scale, quantized)
    assert (codes % 2 == 1).all() and codes.abs().max() < 2**bits


def test_bounds_between_even_levels_round_up():
    x = torch.tensor([-1., -.5, 0., .5, 1., 2.])
    assert F.linear_quantize(x, torch.tensor(1.), 2, even=True).tolist() == [
        -.75, -.25, .25, .75, .75, .75]


def test_the_rule_of_1_bit_is_a_case_of_even_levels():
    x = seeded(50)
    mean = F.mean_abs(x.view(1, -1))
    assert torch.equal(F.linear_quantize(x, mean, 1),
                       F.linear_quantize(x, 2 * mean, 1, even=True))


def test_gradient_of_even_levels_is_straight_through_up_to_the_clip():
    x = torch.tensor([-1.1, -1., 0., .3, 1., 1.1], requires_grad=True)
    F.linear_quantize(x, torch.tensor(1.), 2, even=True).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize('clip', [0., TINY / 4, MAX])
def test_even_levels_of_extreme_clips_are_finite(clip):
    x = torch.tensor([-MAX, -1., 0., 1., MAX])
    codes, scale = F.quantize_codes(x, torch.tensor(clip), 2, even=True)
    assert torch.isfinite(codes * scale).all()
    assert set(codes.tolist()) <= {-3, -1, 1, 3}


@pytest.mark.parametrize('options', [
    dict(bits=4, even=True), dict(bits=2, even=True, signed=False)])
def test_even_levels_are_signed_and_of_few_bits(options):
    with pytest.raises(ValueError, match='even number of levels: 1 to 3'):
        F.linear_quantize(seeded(2), torch.tensor(1.), **options)


# -- linear quantization: values ----------------------------------------------

@given(st.integers(0, 10**6), st.sampled_from([(True, 1), *SIGNED_AND_BITS]),
       st.sampled_from([1e-30, 1e-3, 0.7, 1., 1e5, 1e37]))
@PROPERTY
def test_linear_quantize_equals_brute_force(seed, signed_and_bits, clip):
    signed, bits = signed_and_bits
    # float64 data, so that rounding decisions are those of the oracle
    x = seeded(200, seed=seed, dtype=torch.float64) * clip
    clip = torch.tensor(clip, dtype=torch.float64)
    expected = [quantize_oracle(v, clip.item(), bits, signed)
                for v in x.tolist()]
    np.testing.assert_allclose(
        F.linear_quantize(x, clip, bits, signed), expected, rtol=1e-12)


@pytest.mark.parametrize('bits, signed', [(0, True), (9, True), (1, False),
                                          (9, False)])
def test_bits_that_have_no_grid_are_errors(bits, signed):
    with pytest.raises(ValueError, match=f'bits is {bits}, allowed: 1 to 8, '
                       'and 2 to 8 for unsigned codes'):
        F.quantize_codes(torch.ones(2), torch.ones(()), bits, signed)


@pytest.mark.parametrize('group_size', [1, 3, 4, 16, -1])
@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_groups_are_quantized_with_their_own_clip(bits, group_size):
    x = seeded(10, 2, 3, dtype=torch.float64)
    clip = F.clip_threshold(x, 2., group_size)
    quantized = F.linear_quantize(x, F.expand_clip(clip, x, group_size), bits)
    for value, group in zip(clip.tolist(), groups_of(x, group_size)):
        for i in group:
            np.testing.assert_allclose(
                quantized[i].flatten(), [quantize_oracle(v, value, bits)
                                         for v in x[i].flatten().tolist()],
                rtol=1e-12)


@pytest.mark.parametrize('signed, bits', SIGNED_AND_BITS)
def test_all_levels_are_used_and_no_more(signed, bits):
    x = torch.linspace(-2, 2, 20001)
    quantized = F.linear_quantize(x, torch.tensor(1.), bits, signed)
    levels = 2**bits - 1 if signed else 2**bits  # 2L + 1 and L + 1
    assert len(quantized.unique()) == levels


@pytest.mark.parametrize('signed, bits', [(True, 1), *SIGNED_AND_BITS])
def test_codes_are_integers_in_range_and_scale_back_to_the_value(signed, bits):
    x, clip = seeded(1000) * 2, torch.tensor(1.3)
    codes, scale = F.quantize_codes(x, clip, bits, signed)
    top = max(2**(bits - 1) - 1, 1) if signed else 2**bits - 1
    assert torch.equal(codes, codes.round())
    assert codes.max() == top and codes.min() == (-top if signed else 0)
    assert torch.equal(codes * scale, F.linear_quantize(x, clip, bits, signed))


@given(st.integers(0, 10**6), st.integers(1, 8), st.floats(1e-6, 1e6))
@PROPERTY
def test_signed_quantization_is_odd(seed, bits, clip):
    x, clip = seeded(100, seed=seed) * clip, torch.tensor(clip)
    x = x[x != 0]
    assert torch.equal(F.linear_quantize(-x, clip, bits),
                       -F.linear_quantize(x, clip, bits))


@given(st.integers(0, 10**6), st.sampled_from([(True, 1), *SIGNED_AND_BITS]),
       st.floats(1e-6, 1e6))
@PROPERTY
def test_quantizing_twice_changes_nothing(seed, signed_and_bits, clip):
    signed, bits = signed_and_bits
    x, clip = seeded(100, seed=seed) * clip, torch.tensor(clip)
    once = F.linear_quantize(x, clip, bits, signed)
    assert torch.equal(F.linear_quantize(once, clip, bits, signed), once)


@given(st.integers(0, 10**6), st.sampled_from(SIGNED_AND_BITS),
       st.floats(1e-6, 1e6))
@PROPERTY
def test_error_inside_the_range_is_half_a_step_at_most(
        seed, signed_and_bits, clip):
    signed, bits = signed_and_bits
    x = torch.tensor(np.random.default_rng(seed).uniform(
        -clip if signed else 0, clip, 300), dtype=torch.float32)
    quantized = F.linear_quantize(x, torch.tensor(clip), bits, signed)
    step = clip / (2**(bits - 1) - 1 if signed else 2**bits - 1)
    error = (x.double() - quantized.double()).abs().max().item()
    assert error <= step / 2 + 1e-6 * clip


@given(st.integers(0, 10**6), st.sampled_from([(True, 1), *SIGNED_AND_BITS]),
       st.floats(1e-6, 1e6))
@PROPERTY
def test_values_stay_inside_the_range(seed, signed_and_bits, clip):
    signed, bits = signed_and_bits
    x = seeded(100, seed=seed) * 5 * clip
    quantized = F.linear_quantize(x, torch.tensor(clip), bits, signed)
    assert quantized.abs().max() <= clip * (1 + 1e-6)
    assert signed or quantized.min() >= 0


def test_one_bit_is_the_sign_with_plus_at_zero():
    x = torch.tensor([-2., -1e-30, -0., 0., 1e-30, 3.])
    assert F.linear_quantize(x, torch.tensor(.5), 1).tolist() == [
        -.5, -.5, .5, .5, .5, .5]


@pytest.mark.parametrize('signed, bits', SIGNED_AND_BITS)
def test_zero_clip_gives_zero_codes_and_no_nan(signed, bits):
    x = torch.tensor([0., -0., 1., -1., math.inf])
    codes, scale = F.quantize_codes(x, torch.tensor(0.), bits, signed)
    assert not codes.any() and not scale.any()
    assert not F.linear_quantize(x, torch.tensor(0.), bits, signed).any()


def test_group_of_zeros_beside_others_stays_zero():
    x = seeded(4, 3)
    x[2:] = 0
    for bits in range(1, 9):
        clip = F.expand_clip(F.clip_threshold(x, 2., 2), x, 2)
        quantized = F.linear_quantize(x, clip, bits)
        assert torch.isfinite(quantized).all() and not quantized[2:].any()
        assert quantized[:2].any()


@pytest.mark.parametrize('signed, bits', SIGNED_AND_BITS)
def test_subnormal_clip_gives_no_code_out_of_range(signed, bits):
    # A scale of a few subnormal steps is too coarse to divide by.
    clips = torch.arange(1., 600.) * 2.**-149
    x = torch.tensor([1., -1., 0.]).view(-1, 1)
    codes, _ = F.quantize_codes(x, clips, bits, signed)
    assert codes.abs().max() <= F.num_levels(bits, signed)
    assert torch.isfinite(F.linear_quantize(
        x.expand(3, len(clips)), clips, bits, signed)).all()


@pytest.mark.parametrize('bits', range(2, 9))
def test_the_least_normal_scale_has_all_codes(bits):
    """One that is smaller has none: it would be too coarse."""
    top = F.num_levels(bits)
    codes = torch.arange(-top, top + 1.)
    clip = torch.tensor(TINY * top)
    ours, scale = F.quantize_codes(codes * TINY, clip, bits)
    assert scale == TINY and torch.equal(ours, codes)
    assert not F.quantize_codes(codes * TINY, clip / 2, bits)[0].any()
    if bits <= F.MAX_EVEN_BITS:
        half = 2**(bits - 1)
        odd = torch.arange(1. - 2 * half, 2 * half, 2)
        ours, scale = F.quantize_codes(
            odd * TINY / 2, torch.tensor(TINY * half), bits, even=True)
        assert scale == TINY / 2 and torch.equal(ours, odd)


@pytest.mark.parametrize('signed, bits', [(True, 1), *SIGNED_AND_BITS])
@pytest.mark.parametrize('clip', [MAX, MAX / 2, 3e38, 1e38])
def test_huge_values_do_not_overflow(signed, bits, clip):
    x = torch.tensor([MAX, -MAX, MAX / 3, 1., math.inf, -math.inf])
    quantized = F.linear_quantize(x, torch.tensor(clip), bits, signed)
    assert torch.isfinite(quantized).all()
    assert quantized[0].item() == pytest.approx(
        torch.tensor(clip).item(), rel=1e-6)


@pytest.mark.parametrize('signed, bits', [(True, 1), *SIGNED_AND_BITS])
def test_infinite_input_becomes_the_largest_code(signed, bits):
    x = torch.tensor([math.inf, -math.inf])
    low = -1. if signed else 0.
    torch.testing.assert_close(
        F.linear_quantize(x, torch.tensor(1.), bits, signed),
        torch.tensor([1., low]))


@pytest.mark.parametrize('signed, bits', [(True, 1), *SIGNED_AND_BITS])
@pytest.mark.parametrize('shape', [(0, ), (0, 3, 3), (4, 0)])
def test_empty_tensors_pass(shape, signed, bits):
    x = torch.zeros(shape, requires_grad=True)
    quantized = F.linear_quantize(x, torch.tensor(1.), bits, signed)
    quantized.sum().backward()
    assert quantized.shape == x.grad.shape == torch.Size(shape)


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16,
                                   torch.float32, torch.float64])
def test_dtype_is_kept_and_computed_in_at_least_float32(dtype, bits):
    x = seeded(500, dtype=dtype)
    clip = torch.tensor(1.37, dtype=torch.float64)
    quantized = F.linear_quantize(x, clip, bits)
    assert quantized.dtype == dtype
    internal = torch.promote_types(dtype, torch.float32)
    # The only rounding to the narrow type is that of the result: it equals
    # the quantization of the same values in the wide type.
    assert torch.equal(
        quantized, F.linear_quantize(x.to(internal), clip, bits).to(dtype))
    assert F.quantize_codes(x, clip, bits)[0].dtype == internal


# -- linear quantization: gradients -------------------------------------------

@pytest.mark.parametrize('signed, bits', SIGNED_AND_BITS)
def test_gradient_is_straight_through_inside_bounds_included(signed, bits):
    x = torch.tensor([-1.01, -1., -.5, -0., .3, 1., 1.01], requires_grad=True)
    weight = torch.arange(1., 8.)
    (F.linear_quantize(x, torch.tensor(1.), bits, signed) * weight
     ).sum().backward()
    low = -1. if signed else 0.
    inside = torch.tensor([low <= v <= 1 for v in x.tolist()])
    assert torch.equal(x.grad, weight * inside)


def test_gradient_at_one_bit_is_the_identity():
    x = torch.tensor([-9., -.1, 0., 9.], requires_grad=True)
    F.linear_quantize(x, torch.tensor(1.), 1).pow(2).sum().backward()
    assert x.grad.tolist() == [-2., -2., 2., 2.]


@pytest.mark.parametrize('bits', [1, 4])
def test_clip_gets_no_gradient(bits):
    x = torch.tensor([.5, 2.], requires_grad=True)
    clip = torch.tensor(1., requires_grad=True)
    F.linear_quantize(x, clip, bits).sum().backward()
    assert clip.grad is None and x.grad is not None


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_gradient_has_the_dtype_of_the_input(dtype):
    x = seeded(10, dtype=dtype).requires_grad_()
    F.linear_quantize(x, torch.tensor(1.), 4).sum().backward()
    assert x.grad.dtype == dtype


def test_gradient_uses_the_clip_of_each_group():
    x = torch.tensor([[.5, 1.5], [.5, 1.5]], requires_grad=True)
    clip = F.expand_clip(torch.tensor([1., 2.]), x, 1)
    F.linear_quantize(x, clip, 4).sum().backward()
    assert x.grad.tolist() == [[1., 0.], [1., 1.]]


# -- quantized loss -----------------------------------------------------------

@pytest.mark.parametrize('bits', [2, 3, 4, 5])
def test_uniform_data_lose_one_of_2_l_with_a_clip_of_t(bits):
    levels = 2**(bits - 1) - 1
    x = (torch.arange(20000, dtype=torch.float64) + .5) / 10000 - 1
    clip = F.clip_threshold(x.view(1, -1), 2.)
    loss = F.quantized_loss(x, F.linear_quantize(x, clip, bits))
    assert loss.item() == pytest.approx(1 / (2 * levels), rel=1e-3)


@pytest.mark.parametrize('bits', [2, 3, 4, 5])
def test_uniform_data_lose_one_of_the_number_of_levels_with_the_best_clip(
        bits):
    levels = 2**(bits - 1) - 1
    x = (torch.arange(20000, dtype=torch.float64) + .5) / 10000 - 1
    losses = [F.quantized_loss(x, F.linear_quantize(
        x, torch.tensor(clip), bits)).item()
        for clip in np.linspace(.5, 1.1, 241)]
    assert min(losses) == pytest.approx(1 / (2 * levels + 1), rel=1e-2)


@given(st.integers(0, 10**6))
@PROPERTY
def test_quantized_loss_equals_brute_force(seed):
    w, w_q = seeded(7, 5, seed=seed), seeded(7, 5, seed=seed + 1)
    expected = sum(abs(a - b) for a, b in zip(
        w.double().flatten().tolist(), w_q.double().flatten().tolist())) / \
        sum(map(abs, w.double().flatten().tolist()))
    loss = F.quantized_loss(w, w_q)
    assert loss.dtype == torch.float32 and loss.dim() == 0
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_quantized_loss_of_zeros_is_zero():
    assert F.quantized_loss(torch.zeros(3), torch.zeros(3)) == 0
    assert F.quantized_loss(torch.zeros(0), torch.zeros(0)) == 0


def test_quantized_loss_of_nan_is_nan():
    w = torch.tensor([1., math.nan])
    assert F.quantized_loss(w, w).isnan()


def test_quantized_loss_is_exact_for_many_half_precision_weights():
    w = torch.full((300, 300), 100., dtype=torch.float16)
    assert F.quantized_loss(w, w / 2) == .5
