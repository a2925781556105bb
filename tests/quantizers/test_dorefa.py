"""DoReFa against the formulas of its paper in float64."""
import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gdrq_mm import calibrate, quantize_
from gdrq_mm.checkpoint import pack
from gdrq_mm.deploy import merge
from gdrq_mm.quantizers import DoReFaActivation, DoReFaWeight


def normal(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape),
                        dtype=torch.float32)


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
@pytest.mark.parametrize('group_size', [-1, 1, 3])
def test_weights_follow_the_paper(bits, group_size):
    """Eq. 9 times the maximum, group by group."""
    weight = normal(7, 5, seed=bits).requires_grad_()
    grad = normal(7, 5, seed=9)
    quantizer = DoReFaWeight(7, bits, group_size)
    out = quantizer(weight)
    out.backward(grad)
    size, levels = 7 if group_size == -1 else group_size, 2**bits - 1
    for begin in range(0, 7, size):
        rows = slice(begin, begin + size)
        values = weight[rows].detach().double().flatten().tolist()
        top = max(abs(math.tanh(v)) for v in values)
        expected = [top * (2 * round((math.tanh(v) / (2 * top) + .5)
                                     * levels) / levels - 1) for v in values]
        assert out[rows].flatten().tolist() == pytest.approx(expected,
                                                             abs=1e-5)
        slopes = [1 - math.tanh(v)**2 for v in values]
        expected = [g * slope for g, slope in zip(
            grad[rows].flatten().tolist(), slopes)]
        assert weight.grad[rows].flatten().tolist() == pytest.approx(
            expected, rel=1e-4, abs=1e-6)


def test_one_bit_is_the_sign_times_the_mean():
    """Eq. 8; the gradient is straight-through."""
    weight = normal(4, 6).requires_grad_()
    grad = normal(4, 6, seed=1)
    out = DoReFaWeight(4, 1, -1)(weight)
    out.backward(grad)
    mean = float(weight.detach().double().abs().mean())
    assert out.flatten().tolist() == pytest.approx(
        [math.copysign(mean, v) for v in weight.flatten().tolist()])
    assert torch.equal(weight.grad, grad)


def test_in_front_of_batch_normalization_the_scale_changes_nothing():
    """What the paper computes, with weights that reach from -1 to 1, has the
    same outputs and, through the maximum as well, the same gradients."""
    conv, norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=1e-12)
    x, grad = normal(4, 3, 8, 8), normal(4, 6, 6, 6, seed=1)
    quantizer, gradients, outputs = DoReFaWeight(6, 3, -1), [], []

    def paper(weight):
        tanh = torch.tanh(weight)
        ratio = tanh / (2 * tanh.abs().max()) + .5
        rounded = (ratio * 7).round() / 7
        return 2 * (ratio + (rounded - ratio).detach()) - 1

    for quantize in (quantizer, paper):
        weight = conv.weight.detach().clone().requires_grad_()
        out = norm(nn.functional.conv2d(x, quantize(weight)))
        out.backward(grad)
        outputs.append(out.detach())
        gradients.append(weight.grad)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    # The rounded weights are not quite those that the maximum scales.
    largest = conv.weight.abs() == conv.weight.abs().max()
    torch.testing.assert_close(*(each[~largest] for each in gradients),
                               rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('signed', [False, True])
def test_activations_are_clipped_to_one(signed):
    x = normal(300) if signed else normal(300).abs()
    x.requires_grad_()
    quantizer = DoReFaActivation(3)
    assert quantizer(x) is x
    quantizer.observe(x)
    DoReFaActivation.update_([quantizer])
    assert quantizer.is_signed == signed
    quantizer(x).sum().backward()
    levels, low = (3, -1.) if signed else (7, 0.)
    expected = [round(min(max(v, low), 1.) * levels) / levels
                for v in x.detach().double().tolist()]
    assert quantizer(x).tolist() == pytest.approx(expected)
    assert x.grad.tolist() == [float(low <= v <= 1) for v in x.tolist()]
    scale, low, high, zero = quantizer.code_range()
    assert scale == pytest.approx(1 / levels) and zero == 0
    assert (low, high) == (-levels if signed else 0, levels)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-40, 40, width=32), min_size=6, max_size=6),
       st.integers(1, 8), st.sampled_from([-1, 1]))
def test_packed_codes_give_the_same_weights(values, bits, group_size):
    """tanh is undone; also where float32 knows it as 1."""
    weight = torch.tensor(values).view(2, 3)
    quantizer = DoReFaWeight(2, bits, group_size)
    quantizer.start_step(weight)
    expected = quantizer(weight)
    codes = quantizer.packed_codes(weight)
    assert codes.abs().max() <= 2**bits - 1 and (codes % 2).abs().eq(1).all()
    other = DoReFaWeight(2, bits, group_size)
    other.load_state_dict(quantizer.packed_state(weight))
    again = other.decode(codes, dict(other.state_dict()))
    assert torch.isfinite(again).all()
    assert torch.equal(other(again), expected)


def test_eight_bits_pack_but_their_codes_do_not_fit_integer_kernels():
    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4))
        quantize_(model, dict(weight=dict(type='DoReFa', bits=8),
                              activation=dict(type='LSQ', bits=8)))
        return model.eval()

    model, x = make(), normal(3, 6)
    calibrate(model, [lambda: model(x)])
    other = make()
    other.load_state_dict(pack(model))
    assert torch.equal(other(x), model(x))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='codes up to 255, .* 7 bits or'):
        merge(model, x)
    assert all(torch.equal(before[key], value)
               for key, value in model.state_dict().items())


def test_seven_bits_fit_integer_kernels():
    quantizer, weight = DoReFaWeight(4, 7, -1), normal(4, 6)
    codes, scale = quantizer.codes(weight)
    assert codes.abs().max() == quantizer.highest_code == 127
    torch.testing.assert_close(codes * scale, quantizer(weight))


def test_the_grid_that_was_loaded_stays_until_the_first_step():
    """As that of a model average, whose maximum is not its weights'."""
    quantizer, weight = DoReFaWeight(4, 3, -1), normal(4, 6)
    quantizer.load_state_dict(dict(top=torch.tensor([2.])))
    quantizer.start_step(weight)
    assert float(quantizer.top) == 2
    quantizer.after_step(weight)
    assert float(quantizer.top) == pytest.approx(
        float(weight.abs().max().tanh()))


def test_a_few_negatives_of_an_unsigned_input_are_clipped_to_zero():
    quantizer = DoReFaActivation(3)
    quantizer.start_([], signed=False)
    x = torch.tensor([-.5, 0., .3, 2.])
    assert quantizer(x, rounding=False).tolist() == pytest.approx(
        [0, 0, .3, 1])
    assert quantizer(x).tolist() == pytest.approx([0, 0, 2 / 7, 1])


def test_layers_that_share_a_weight_have_its_grid():
    weight = normal(4, 6)
    first, second = (DoReFaWeight(4, 3, -1) for _ in range(2))
    first.after_step(weight)
    second.share(first, weight)
    assert torch.equal(first.top, second.top) and float(second.top) > 0


def test_the_clipped_share_is_of_the_values_that_are_not_zero():
    quantizer = DoReFaActivation(3)
    quantizer.start_([], signed=False)
    assert quantizer.clipped_fraction(torch.tensor([0., 0., 3.])) == 1
    assert quantizer.clipped_fraction(torch.tensor([.5, 0., 3., -4.])) == \
        pytest.approx(2 / 3)


def test_weights_beyond_the_grid_that_was_loaded_take_its_last_codes():
    quantizer, weight = DoReFaWeight(4, 3, -1), 5 * normal(4, 6)
    quantizer.load_state_dict(dict(top=torch.tensor([.2])))
    codes = quantizer.packed_codes(weight)
    assert codes.abs().max() == quantizer.highest_code == 7
    assert float(quantizer(weight).abs().max()) == pytest.approx(.2)


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_what_is_unpacked_lies_on_the_levels(bits):
    """The tanh of a weight does; at 1 bit there is none."""
    weight = 3 * normal(4, 9)
    quantizer = DoReFaWeight(4, bits, -1)
    codes = quantizer.packed_codes(weight)
    entries = quantizer.packed_state(weight)
    decoded = quantizer.decode(codes, entries)
    levels = codes * entries['top'] / (2**bits - 1)
    torch.testing.assert_close(
        decoded if bits == 1 else torch.tanh(decoded), levels)
