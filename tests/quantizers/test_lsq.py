"""LSQ against the formulas of its paper in float64, and on the whole road."""
import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from gdrq_mm import calibrate, quantize_
from gdrq_mm.checkpoint import pack
from gdrq_mm.deploy import merge
from gdrq_mm.merge import merge_errors
from gdrq_mm.quantizers import LSQActivation, LSQWeight
from gdrq_mm.training import get_state, step_

CONFIG = dict(weight=dict(type='LSQ', bits=2),
              activation=dict(type='LSQ', bits=4))


def normal(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape),
                        dtype=torch.float32)


def make(config=CONFIG):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 16, 5))
    report = quantize_(model, config)
    return model, report


def train(model, optimizer, steps=3):
    for step in range(steps):
        optimizer.zero_grad()
        model(normal(4, 3, 8, 8, seed=step)).square().sum().backward()
        optimizer.step()


def formula(x, step, low, high, grad, gradient_scale):
    """Values and gradients (Eq. 1 to 3, 5), one element at a time."""
    values, grad_x, grad_step = [], [], 0.
    for v, g in zip(x.double().flatten().tolist(),
                    grad.double().flatten().tolist()):
        ratio = v / step
        code = min(max(round(ratio), low), high)
        values.append(code * step)
        inside = low <= ratio <= high
        grad_x.append(g if inside else 0.)
        slope = code - ratio if inside else (low if ratio < low else high)
        grad_step += g * slope * gradient_scale
    return values, grad_x, grad_step


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
@pytest.mark.parametrize('group_size', [-1, 1, 3])
def test_weights_follow_the_paper(bits, group_size):
    weight = normal(7, 5, seed=bits).requires_grad_()
    grad = normal(7, 5, seed=bits + 1)
    quantizer = LSQWeight(7, bits, group_size)
    quantizer.start_step(weight)
    size = 7 if group_size == -1 else group_size
    low, high = -2**(bits - 1), 2**(bits - 1) - 1
    out = quantizer(weight)
    out.backward(grad)
    number = math.ceil(7 / size)
    for group in range(number):
        rows = slice(group * size, (group + 1) * size)
        step = float(quantizer.step.detached[group])
        assert step == pytest.approx(
            2 * float(weight[rows].abs().mean()) / math.sqrt(high), rel=1e-5)
        values, grad_x, grad_step = formula(
            weight[rows].detach(), step, low, high, grad[rows],
            1 / math.sqrt(35 / number * high))
        assert out[rows].flatten().tolist() == pytest.approx(values, rel=1e-5)
        assert weight.grad[rows].flatten().tolist() == pytest.approx(grad_x)
        assert float(quantizer.step.ratio.grad[group]) == pytest.approx(
            grad_step / step, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize('signed', [True, False])
def test_activations_follow_the_paper(signed):
    x = normal(6, 10).requires_grad_() if signed else \
        normal(6, 10).abs().requires_grad_()
    grad = normal(6, 10, seed=1)
    quantizer = LSQActivation(3)
    assert quantizer(x) is x  # nothing is known yet
    quantizer.observe(x)
    LSQActivation.update_([quantizer])
    low, high = (-4, 3) if signed else (0, 7)
    assert quantizer.is_signed == signed
    step = float(quantizer.step.detached)
    assert step == pytest.approx(
        2 * float(x.abs().mean()) / math.sqrt(high), rel=1e-5)
    out = quantizer(x)
    out.backward(grad)
    values, grad_x, grad_step = formula(
        x.detach(), step, low, high, grad,
        1 / math.sqrt(60 * high))
    assert out.flatten().tolist() == pytest.approx(values, rel=1e-5)
    assert x.grad.flatten().tolist() == pytest.approx(grad_x)
    assert float(quantizer.step.ratio.grad) == pytest.approx(
        grad_step / step, rel=1e-4)


def test_forward_of_the_quantizer_is_what_trains():
    model, report = make()
    optimizer = torch.optim.SGD(model.parameters(), .01)
    before = {name: value.detach().clone()
              for name, value in report.learned_parameters().items()}
    train(model, optimizer)
    after = report.learned_parameters()
    assert set(before) == {f'{layer}.{part}.step.ratio' for layer in '037'
                           for part in ('weight_quantizer',
                                        'input_quantizer')}
    assert all(after[name] != 0 for name in after)
    train(model, optimizer, 1)
    assert all(not torch.equal(before[name], after[name]) for name in after)


def test_weights_are_not_reshaped():
    model, _ = make()
    weight = model[0].weight.detach().clone()
    model(normal(4, 3, 8, 8)).sum().backward()
    step_(get_state(model))
    assert torch.equal(model[0].weight, weight)


def test_rounding_starts_with_the_phase():
    weight = normal(4, 3)
    assert LSQWeight(4, 2, -1)(weight, rounding=False) is weight


def test_steps_that_no_optimizer_holds_are_an_error_in_the_first_step():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), .01)
    quantize_(model, dict(weight=dict(type='LSQ', bits=4)))
    model(normal(2, 4)).sum().backward()
    with pytest.raises(RuntimeError, match='0.weight_quantizer.step.ratio is '
                       'learned, but the SGD .*add_learned_parameters'):
        optimizer.step()


@pytest.mark.parametrize('weight, activation', [(2, 4), (4, 4), (3, 8)])
def test_reloads_packs_and_merges(weight, activation):
    config = dict(weight=dict(type='LSQ', bits=weight, group_size=2),
                  activation=dict(type='LSQ', bits=activation))
    model, _ = make(config)
    train(model, torch.optim.Adam(model.parameters(), 1e-3))
    model.eval()
    images = normal(2, 3, 8, 8, seed=9)
    with torch.no_grad():
        expected = model(images)
        for content in (copy.deepcopy(model.state_dict()), pack(model)):
            other, _ = make(config)
            other.load_state_dict(content)
            assert torch.equal(other.eval()(images), expected)
        merged = merge(model, images)
        errors = merge_errors(model, merged, images)
        # The first layer's input is float up to its quantizer.
        assert len(errors) == 3 and max(errors.values()) < 1e-5


def test_without_training_a_calibration_is_enough():
    model, _ = make()
    calibrate(model, [lambda: model(normal(4, 3, 8, 8))])
    other, _ = make()
    other.load_state_dict(pack(model))
    images = normal(2, 3, 8, 8, seed=3)
    assert torch.equal(other.eval()(images), model.eval()(images))


@pytest.mark.parametrize('weight, message', [
    (dict(type='LSQ', bits=1), 'weight.bits is 1, allowed: 2 to 8'),
    (dict(type='LSQ', bits=4, k=2.), "weight has no field 'k'"),
    (dict(type='LSQ', bits=4, clip='search'), "weight has no field 'clip'")])
def test_fields_of_another_type_are_errors(weight, message):
    with pytest.raises(ValueError, match=message):
        quantize_(nn.Linear(2, 2), dict(weight=weight))


def test_a_rule_of_another_type_has_the_defaults_of_that_type():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    quantize_(model, dict(
        weight=dict(bits=4, k=3., group_size=2),
        rules=[dict(match='1', weight=dict(type='LSQ'))]))
    assert isinstance(model[1].weight_quantizer, LSQWeight)
    assert model[1].weight_quantizer.bits == 4
    assert model[1].weight_quantizer.group_size == 2


@pytest.mark.parametrize('bits', [2, 3, 8])
def test_codes_of_weights_end_at_both_ends_of_their_bits(bits):
    quantizer = LSQWeight(2, bits, -1)
    quantizer.step.start_(.1)
    weight = torch.tensor([[-1e3, 0.], [.1, 1e3]])
    ends = -2**(bits - 1), 2**(bits - 1) - 1
    codes, _ = quantizer.codes(weight)
    assert (codes.min(), codes.max()) == ends
    assert (quantizer.lowest_code, quantizer.highest_code) == ends
    assert float(quantizer.scalars()['lsq_weight_step']) == pytest.approx(.1)
    values = quantizer(weight) / .1
    torch.testing.assert_close(
        torch.stack([values.min(), values.max()]), torch.tensor(ends).float())


def test_values_at_the_ends_of_the_codes_are_not_clipped():
    quantizer = LSQActivation(3)
    quantizer.step.start_(.5)
    assert quantizer.clipped_fraction(
        torch.tensor([0., 1., 3.5, 3.6, -.1])) == .5


def test_a_single_value_gets_the_gradient_of_the_paper():
    quantizer = LSQActivation(4)
    assert quantizer.scalars() == {}
    quantizer.start_([1.], signed=False)
    step = float(quantizer.step.detached)
    quantizer(torch.full((1, ), .3 * step)).sum().backward()
    # Of the ratio, in whose units it is held.
    assert float(quantizer.step.ratio.grad) * step == pytest.approx(
        -.3 / math.sqrt(15))
    assert float(quantizer.scalars()['lsq_act_step']) == step


def test_an_optimizer_from_before_the_conversion_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), .1)
    quantize_(model, CONFIG)
    model(torch.randn(3, 4)).sum().backward()
    with pytest.raises(RuntimeError, match='step.ratio is learned, but '
                       'the SGD .* does not hold it'):
        optimizer.step()


def test_step_sizes_may_have_an_optimizer_of_their_own():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    quantize_(model, CONFIG)
    steps = [value for name, value in model.named_parameters()
             if '_quantizer.' in name]
    others = [value for name, value in model.named_parameters()
              if '_quantizer.' not in name]
    optimizers = [torch.optim.SGD(others, .1), torch.optim.Adam(steps, 1e-3)]
    for _ in range(2):
        model(torch.rand(3, 4)).sum().backward()
        before = [each.detach().clone() for each in steps]
        for optimizer in optimizers:
            optimizer.step()
    assert any(not torch.equal(*each) for each in zip(before, steps))


def test_the_ends_of_the_range_are_inside():
    quantizer = LSQActivation(4)
    quantizer.start_([1.], signed=True)
    quantizer.signed.fill_(True)
    quantizer.forget()
    step = float(quantizer.step.detached)
    low, high = quantizer.codes_between(True)
    x = torch.tensor([low - 1., low, 0., high, high + 1.]) * step
    x.requires_grad_()
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [0., 1., 1., 1., 0.]


def test_before_training_the_step_is_that_of_the_weight_at_hand():
    quantizer, weight = LSQWeight(4, 4, -1), normal(4, 6)
    started = LSQWeight(4, 4, -1)
    started.start_step(weight)
    assert not quantizer.step.started
    assert torch.equal(quantizer(weight), started(weight))
    assert not torch.equal(quantizer(2 * weight), started(2 * weight))


@pytest.mark.parametrize('name', ['LSQ', 'LSQPlus'])
def test_layers_that_start_as_zeros_train(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    nn.init.zeros_(model[2].weight)
    quantize_(model, dict(weight=dict(type=name, bits=4),
                          activation=dict(type=name, bits=4)))
    optimizer = torch.optim.SGD(model.parameters(), .1)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (model(normal(16, 8)) - normal(16, 4, seed=1)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < .99 * losses[0]  # false of NaN
    assert model[2].weight.isfinite().all() and model[2].weight.any()


def test_dead_filters_give_zeros_without_training():
    model, _ = make(dict(weight=dict(type='LSQ', bits=2, group_size=1),
                         activation=dict(type='LSQ', bits=4)))
    model[3].weight.data[1] = 0
    calibrate(model, [lambda: model(normal(4, 3, 8, 8))])
    assert model.eval()(normal(4, 3, 8, 8)).isfinite().all()
    codes, scale = model[3].weight_quantizer.codes(model[3].weight)
    assert not codes[1].any() and scale.isfinite().all()


@pytest.mark.parametrize('activation, begins', [
    (dict(type='LSQ'), True), (dict(type='LSQPlus'), True),
    (dict(threshold='learned'), True), (dict(type='PACT'), False)])
def test_ranges_that_nothing_moved_begin_with_rounding(activation, begins):
    """PACT clips, and so learns, before."""
    model, _ = make(dict(weight=dict(bits=4),
                         activation=dict(bits=4, **activation)))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    get_state(model).set_phase('reshape')
    train(model, optimizer)
    quantizer = model[0].input_quantizer
    _, early = quantizer.value_range()
    get_state(model).set_phase('quantize')
    assert quantizer.initialized != begins
    model(100 * normal(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    _, late = quantizer.value_range()
    assert (late > 10 * early) == begins
