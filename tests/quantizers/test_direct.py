"""Direct Quantization against its definition in float64."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gdrq_mm import calibrate, quantize_
from gdrq_mm.checkpoint import pack
from gdrq_mm.deploy import merge
from gdrq_mm.quantizers import (
    DirectQuantizationActivation,
    DirectQuantizationWeight,
)
from gdrq_mm.quantizers.direct import lloyd


def normal(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape),
                        dtype=torch.float32)


@pytest.mark.parametrize('bits, group_size', [(1, -1), (2, -1), (2, 3),
                                              (4, 2)])
def test_values_and_gradients_of_weights(bits, group_size):
    weight = normal(7, 9, seed=bits).requires_grad_()
    grad = normal(7, 9, seed=9)
    quantizer = DirectQuantizationWeight(7, bits, group_size)
    quantizer.start_step(weight)
    out = quantizer(weight)
    out.backward(grad)
    assert torch.equal(weight.grad, grad)  # straight-through
    size, count = 7 if group_size == -1 else group_size, 2**bits
    per_level = weight.numel() / quantizer.levels.numel()
    for group, levels in enumerate(quantizer.levels.double().view(
            -1, count).tolist()):
        rows = slice(group * size, (group + 1) * size)
        sums = [0.] * count
        for v, g, q in zip(weight[rows].double().flatten().tolist(),
                           grad[rows].double().flatten().tolist(),
                           out[rows].double().flatten().tolist()):
            index = min(range(count), key=lambda i: abs(levels[i] - v))
            assert q == levels[index]
            sums[index] += g / per_level**.5
        assert quantizer.levels.grad.view(
            -1, count)[group].tolist() == pytest.approx(
            sums, rel=1e-4, abs=1e-5)


def test_a_gradient_step_moves_the_quantized_weights_themselves():
    weight = normal(4, 8).requires_grad_()
    quantizer = DirectQuantizationWeight(4, 2, -1)
    quantizer.start_step(weight)
    before = quantizer(weight)
    before.square().sum().backward()
    with torch.no_grad():
        quantizer.levels -= .01 * quantizer.levels.grad
        after = quantizer(weight)  # which itself stayed where it was
    assert not torch.equal(before, after)
    assert after.square().sum() < before.square().sum()


def test_levels_start_at_the_least_squared_error():
    """No single level moved makes it less, and uneven data uneven levels."""
    values = torch.cat([normal(500) * .05 - 1, normal(500) * .05 + .2])
    levels = lloyd(values, 4, DirectQuantizationWeight.ITERATIONS)

    def error(points):
        return float((values.double()[:, None] - points).abs().min(
            1)[0].square().sum())

    for index in range(4):
        for shift in (-.02, .02):
            moved = levels.clone()
            moved[index] += shift
            assert error(moved) > error(levels)
    even = torch.linspace(float(values.min()), float(values.max()), 4)
    assert error(levels) < .3 * error(even)


@pytest.mark.parametrize('iterations, levels', [
    (0, [2., 4., 6., 9.]),  # the middles of four parts of equal size
    (1, [2., 4.5, 6., 8.5])])  # means of 1 2 3, 4 5, 6, 8 9
def test_levels_go_from_quantiles_to_means(iterations, levels):
    values = torch.tensor([5., 2., 9., 1., 8., 4., 6., 3.])
    assert lloyd(values, 4, iterations).tolist() == levels


def test_a_level_without_weights_stays_where_it_is():
    values = torch.tensor([3., 3., 3., 3., 3., 10.])
    assert lloyd(values, 3, 1).tolist() == [3., 3., 10.]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-9, 9, width=32), min_size=12, max_size=12),
       st.integers(1, 8), st.sampled_from([-1, 1, 2]))
def test_packed_codes_give_the_same_weights(values, bits, group_size):
    weight = torch.tensor(values).view(3, 4)
    quantizer = DirectQuantizationWeight(3, bits, group_size)
    expected = quantizer(weight)
    codes = quantizer.packed_codes(weight)
    assert codes.min() >= 0 and codes.max() <= quantizer.highest_code
    other = DirectQuantizationWeight(3, bits, group_size)
    other.load_state_dict(quantizer.packed_state(weight))
    assert torch.equal(other(other.decode(codes, other.state_dict())),
                       expected)


def test_levels_that_crossed_each_other_are_sorted():
    quantizer = DirectQuantizationWeight(1, 1, -1)
    with torch.no_grad():
        quantizer.levels.copy_(torch.tensor([.5, -.5]))
    assert quantizer(torch.tensor([[-.2, .3]])).tolist() == [[-.5, .5]]


def started(x, bits=4):
    quantizer = DirectQuantizationActivation(bits)
    assert quantizer(x) is x
    quantizer.observe(x)
    DirectQuantizationActivation.update_([quantizer])
    return quantizer


def test_a_loud_channel_does_not_decide():
    """The relative errors of most channels are smaller than with the step of
    least squared error of the layer."""
    x = normal(8, 6, 4, 4).abs()
    x[:, 0] *= 20
    ours = started(x, 4)

    def errors(step):
        off = (x / step).round().clamp(0, 15) * step - x
        return off.square().sum((0, 2, 3)) / x.square().sum((0, 2, 3))

    steps = np.geomspace(1e-3, 10, 2000).tolist()
    layer = min(steps, key=lambda step: float(
        ((x / step).round().clamp(0, 15) * step - x).square().sum()))
    step = float(ours.step)
    assert int((errors(step) < errors(layer)).sum()) >= 5
    best = min(float(errors(each).mean()) for each in steps)
    assert float(errors(step).mean()) <= 1.02 * best


def test_the_step_follows_the_activations():
    """A hundredth of the way to the weighted least squares of the codes."""
    x = normal(64, 5).abs()
    quantizer = started(x, 3)
    before, x = float(quantizer.step), 1.5 * x
    quantizer.observe(x)
    DirectQuantizationActivation.update_([quantizer])
    values = x.double().numpy()
    codes = np.clip(np.rint(values / np.float32(before)), 0, 7)
    weights = 1 / (values**2).sum(0)
    target = (values * codes * weights).sum() / (codes**2 * weights).sum()
    assert float(quantizer.step) == pytest.approx(
        before + .01 * (target - before), rel=1e-5)
    assert quantizer.fitted.tolist() == [0, 0]


@pytest.mark.parametrize('signed', [False, True])
def test_activations_are_rounded_with_a_straight_through_gradient(signed):
    x = (normal(30, 4) if signed else normal(30, 4).abs()).requires_grad_()
    quantizer = started(x, 3)
    low, high = (-4, 3) if signed else (0, 7)
    step = float(quantizer.step)
    quantizer(x).sum().backward()
    ratios = [v / step for v in x.detach().double().flatten().tolist()]
    assert quantizer(x).flatten().tolist() == pytest.approx(
        [min(max(round(r), low), high) * step for r in ratios], rel=1e-5)
    assert x.grad.flatten().tolist() == [
        float(low <= r <= high) for r in ratios]


def test_it_trains_and_packs_but_has_no_integer_codes():
    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        quantize_(model, dict(
            weight=dict(type='DirectQuantization', bits=2),
            activation=dict(type='DirectQuantization', bits=4)))
        return model.eval()

    model, x = make(), normal(3, 6)
    calibrate(model, [lambda: model(x)])
    other = make()
    other.load_state_dict(pack(model))
    assert torch.equal(other(x), model(x))
    with pytest.raises(ValueError, match='DirectQuantizationWeight has no '
                       'integer codes, .*not equally spaced.*ScaleClip'):
        merge(model, x)


def test_a_step_that_saw_no_values_moves_nothing():
    quantizer = started(normal(64, 5).abs(), 3)
    before = float(quantizer.step)
    DirectQuantizationActivation.update_([quantizer])
    assert float(quantizer.step) == before
    quantizer.observe(torch.zeros(64, 5))  # they tell no step either
    assert quantizer.fitted.tolist() == [0, 0]
    DirectQuantizationActivation.update_(iter([quantizer]))
    assert float(quantizer.step) == before


@pytest.mark.parametrize('bad', [float('inf'), float('nan')])
def test_a_value_that_is_not_finite_moves_no_step(bad):
    """Mixed precision skips such a step, and the next one goes on."""
    quantizer = DirectQuantizationActivation(4)
    x = torch.rand(1000, 1)
    quantizer.observe(x)
    quantizer.update_([quantizer])
    before = quantizer.step.clone()
    x[7] = bad
    quantizer.observe(x)
    quantizer.update_([quantizer])
    assert quantizer.step == before


def test_the_largest_level_is_logged():
    quantizer, weight = DirectQuantizationWeight(4, 2, -1), normal(4, 6)
    quantizer.start_step(weight)
    assert float(quantizer.scalars()['direct_weight_top']) == float(
        quantizer.levels.detach().abs().max())


@pytest.mark.parametrize('signed', [False, True])
def test_the_clipped_share_is_of_the_values_that_are_not_zero(signed):
    x = normal(300, 4) if signed else normal(300, 4).abs()
    quantizer = started(x, 3)
    low, high = (-4, 3) if signed else (0, 7)
    step = float(quantizer.step)
    ends = torch.tensor([low * step, 0., high * step, high * step * 1.1])
    assert quantizer.clipped_fraction(ends) == pytest.approx(
        1 / (3 if signed else 2))
    assert quantizer.clipped_fraction(
        torch.tensor([0., 0., 9 * high * step])) == 1
    assert quantizer.state_dict().keys() == {'step', 'signed'}


def test_a_single_value_moves_the_step_as_many_would():
    alone, many = (started(torch.full((count, 1), 3.), 3)
                   for count in (1, 7))
    for quantizer, count in ((alone, 1), (many, 7)):
        quantizer.observe(torch.full((count, 1), 4.))
        DirectQuantizationActivation.update_([quantizer])
    assert float(alone.step) == pytest.approx(float(many.step), rel=1e-6)
    assert float(alone.step) > 3 / 7


@pytest.mark.parametrize('grad', [False, True])
def test_frozen_weights_have_levels_that_are_learned(grad):
    weight = normal(4, 6).requires_grad_(grad)
    quantizer = DirectQuantizationWeight(4, 2, -1)
    quantizer.start_step(weight)
    quantizer(weight).sum().backward()
    assert quantizer.levels.grad.any()
    assert (weight.grad is not None) == grad


def test_init_weights_of_matrices_leaves_levels_alone():
    """As DETR's draws all parameters of more than one dimension anew."""
    model = nn.Sequential(nn.Linear(8, 8))
    quantize_(model, dict(weight=dict(type='DirectQuantization', bits=2,
                                      group_size=4)))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    model(torch.randn(2, 8))
    assert not [name for name, each in model[0].weight_quantizer.
                named_parameters() if each.dim() > 1]
    quantized = model[0].quantized_weight()
    error = (quantized - model[0].latent_weight).square().sum()
    assert error < .2 * model[0].latent_weight.square().sum()
