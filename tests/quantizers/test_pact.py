"""PACT against the formulas of its paper in float64."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.checkpoint import CheckpointError
from gdrq_mm.quantizers import DoReFaWeight, PACTActivation
from gdrq_mm.training import add_learned_parameters, get_state


def normal(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape),
                        dtype=torch.float32)


def started(x, bits=4):
    quantizer = PACTActivation(bits)
    assert quantizer(x) is x and not quantizer.initialized
    quantizer.observe(x)
    PACTActivation.update_([quantizer])
    return quantizer


def formula(x, clip, bits, signed, grad):
    """Eq. 1 to 3, and their mirror image where there are negative values."""
    levels = 2**(bits - 1) - 1 if signed else 2**bits - 1
    low = -clip if signed else 0.
    values, grad_x, grad_clip = [], [], 0.
    for v, g in zip(x, grad):
        y = min(max(v, low), clip)
        values.append(round(y * levels / clip) * clip / levels)
        grad_x.append(g if low < v < clip else 0.)
        grad_clip += g if v >= clip else -g if signed and v <= -clip else 0.
    return values, grad_x, grad_clip


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('signed', [False, True])
def test_values_and_gradients_follow_the_paper(bits, signed):
    x = normal(200, seed=bits)
    x = (x if signed else x.relu()).requires_grad_()
    quantizer = started(x, bits)
    assert quantizer.is_signed == signed
    grad = normal(200, seed=9)
    out = quantizer(x)
    out.backward(grad)
    values, grad_x, grad_clip = formula(
        x.detach().double().tolist(), float(quantizer.clip.detached), bits,
        signed, grad.double().tolist())
    assert out.tolist() == pytest.approx(values, rel=1e-5, abs=1e-6)
    assert x.grad.tolist() == pytest.approx(grad_x)
    assert float(quantizer.clip.ratio.grad) == pytest.approx(
        grad_clip / float(quantizer.clip.unit), rel=1e-4)


def test_the_range_acts_before_rounding_begins():
    x = normal(50).relu()
    quantizer = started(x)
    clip = float(quantizer.clip.detached)
    assert torch.equal(quantizer(x, rounding=False), x.clamp(max=clip))
    x = normal(50)
    quantizer = started(x)
    clip = float(quantizer.clip.detached)
    assert torch.equal(quantizer(x, rounding=False), x.clamp(-clip, clip))
    assert (x < -clip).any()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 100, width=32), min_size=3, max_size=30),
       st.integers(2, 8))
def test_rounding_keeps_order_and_is_done_once(values, bits):
    x = torch.tensor(values).sort()[0]
    quantizer = started(x, bits)
    once = quantizer(x).detach()
    assert (once.diff() >= 0).all() and (once >= 0).all()
    assert torch.allclose(quantizer(once).detach(), once, rtol=1e-5)


def test_a_few_negatives_do_not_make_an_input_signed():
    x = normal(5000).abs()
    x[0] = -3.
    assert not started(x).is_signed
    x[:20] = -3.
    assert started(x).is_signed


def test_clip_values_decay_as_weights_do():
    """L2 regularization of the clip value (Section 3.2), whichever way the
    optimizer came to hold it; none of a step size."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD([
        dict(params=model[0].parameters(), weight_decay=.1),
        dict(params=model[1].parameters(), weight_decay=.2)], lr=.5)
    report = quantize_(model, dict(
        weight=dict(type='LSQ', bits=4),
        activation=dict(type='PACT', bits=4)))
    add_learned_parameters(get_state(model), optimizer)
    decay = {id(parameter): group['weight_decay']
             for group in optimizer.param_groups
             for parameter in group['params']}
    names = report.learned_parameters()
    assert {name: decay[id(each)] for name, each in names.items()} == {
        '0.weight_quantizer.step.ratio': 0.,
        '0.input_quantizer.clip.ratio': .1,
        '1.weight_quantizer.step.ratio': 0.,
        '1.input_quantizer.clip.ratio': .2}
    model(normal(3, 4)).sum().backward()
    optimizer.step()  # starts the clip values
    clip = model[0].input_quantizer.clip
    before = float(clip.detached)
    optimizer.zero_grad()
    model(torch.full((3, 4), 1e-3)).sum().backward()
    assert float(clip.ratio.grad) == 0
    optimizer.step()
    assert float(clip.detached) == pytest.approx(before * (1 - .5 * .1))


def test_its_weights_are_those_of_dorefa():
    model = nn.Sequential(nn.Linear(4, 4))
    quantize_(model, dict(weight=dict(type='PACT', bits=3)))
    assert isinstance(model[0].weight_quantizer, DoReFaWeight)


@pytest.mark.parametrize('signed', [False, True])
def test_codes_of_the_range(signed):
    x = normal(100) if signed else normal(100).abs()
    quantizer = started(x, 3)
    clip, levels = float(quantizer.clip.detached), 3 if signed else 7
    scale, low, high, zero = quantizer.code_range()
    assert scale == pytest.approx(clip / levels) and zero == 0
    assert (low, high) == (-levels if signed else 0, levels)


def test_a_file_with_a_negative_clip_value_is_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    quantize_(model, dict(activation=dict(type='PACT', bits=4)))
    state = model.state_dict()
    state['0.input_quantizer.clip.unit'] = torch.tensor(-1.)
    with pytest.raises(CheckpointError, match='input_quantizer.clip.unit'):
        model.load_state_dict(state)


def test_values_at_the_ends_move_the_clip_value():
    """Eq. 3: the gradient is 1 from ``a`` on."""
    quantizer = PACTActivation(4)
    quantizer.start_([0., 2.], signed=True)
    quantizer.signed.fill_(True)
    quantizer.forget()
    x = torch.tensor([-2., 0., 2.], requires_grad=True)
    quantizer(x).backward(torch.tensor([5., 7., 11.]))
    assert x.grad.tolist() == [0., 7., 0.]
    assert 2 * float(quantizer.clip.ratio.grad) == pytest.approx(11 - 5)


@pytest.mark.parametrize('signed', [False, True])
def test_starts_at_the_least_squared_error_of_its_codes(signed):
    x = normal(3000) if signed else normal(3000).abs()
    clip = float(started(x, 3).clip.detached)
    low, high = (-3, 3) if signed else (0, 7)

    def error(clip):
        step = clip / high
        return float(((x / step).round().clamp(low, high) * step
                      - x).square().mean())

    best = min(map(error, np.geomspace(.1, 9, 400).tolist()))
    assert error(clip) <= 1.01 * best


def test_the_clipped_share_is_of_the_values_that_are_not_zero():
    quantizer = PACTActivation(4)
    quantizer.start_([2., 0.], signed=False)
    assert quantizer.clipped_fraction(torch.tensor([0., 0., 3.])) == 1
    assert quantizer.clipped_fraction(torch.tensor([2., 0., 3., -4.])) == \
        pytest.approx(2 / 3)
