"""Learned clip values of weights: formulas in float64, and where they act."""
import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.quantizers import LSQWeight
from gdrq_mm.quantizers.scale_clip import (
    LearnedClipWeight,
    ScaleClipWeightScheme,
)
from gdrq_mm.training import add_learned_parameters, get_state

GRIDS = [(2, 'odd'), (3, 'odd'), (4, 'odd'), (8, 'odd'), (2, 'even'),
         (3, 'even'), (4, 'even')]  # 4 bits: odd, whatever is asked for


def normal(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape),
                        dtype=torch.float32)


def built(weight, **options):
    scheme = ScaleClipWeightScheme(**dict(
        dict(bits=4, clip='learned', group_size=3), **options))
    return LearnedClipWeight.build(scheme, num_filters=len(weight))


def make(seed=0, **weight):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(6 * 36, 4))
    report = quantize_(model, dict(weight=dict(
        dict(bits=2, clip='learned'), **weight)))
    return model, report


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        model(normal(4, 3, 8, 8, seed=step)).square().mean().backward()
        optimizer.step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), .05, momentum=.9)


def formula(weight, clip, bits, even, grad, values_a_group):
    """Values and gradients, one element at a time: the grid of Eq. 2 (even:
    the middles of 2^b intervals), and Eq. 3 of LSQ for its step."""
    steps = 2**(bits - 1) if even else 2**(bits - 1) - 1
    top = steps - .5 if even else steps
    step = clip / steps
    values, grad_weight, grad_step = [], [], 0.
    for w, g in zip(weight, grad):
        code = math.floor(w / step) + .5 if even else round(w / step)
        code = min(max(code, -top), top)
        values.append(code * step)
        grad_weight.append(g if abs(w) <= clip else 0.)
        grad_step += g * (code - w / step if abs(w) < clip else code)
    grad_step /= math.sqrt(values_a_group * top)
    return values, grad_weight, steps * grad_step


@pytest.mark.parametrize('group_size', [-1, 1, 3])
@pytest.mark.parametrize('bits, levels', GRIDS)
def test_values_and_gradients_follow_the_formulas(bits, levels, group_size):
    """The clip value goes so many times as far as LSQ's step size would as
    there are steps in it."""
    weight = normal(7, 3, 2, 2, seed=bits)
    quantizer = built(weight, bits=bits, levels=levels,
                      group_size=group_size)
    quantizer.start_step(weight)
    with torch.no_grad():
        quantizer.clip.ratio.mul_(.7)  # something is clipped
        clips = quantizer.clip()
        # And something lies on the bounds.
        first = clips.repeat_interleave(
            7 if group_size == -1 else group_size)[:7]
        weight[:, 0, 0, 0], weight[:, 0, 0, 1] = first, -first
    weight.requires_grad_()
    grad = normal(*weight.shape, seed=9)
    out = quantizer(weight)
    out.backward(grad)
    size = 7 if group_size == -1 else group_size
    parts = [each.detach().double().flatten(1).split(size)
             for each in (weight, grad, out, weight.grad)]
    assert len(parts[0]) == len(clips)
    even = levels == 'even' and bits < 4
    for index, (w, g, values, grad_w) in enumerate(zip(*parts)):
        expected = formula(w.flatten().tolist(), float(clips[index]), bits,
                           even, g.flatten().tolist(),
                           weight.numel() / len(clips))
        assert values.flatten().tolist() == pytest.approx(
            expected[0], rel=1e-5, abs=1e-6)
        assert grad_w.flatten().tolist() == pytest.approx(expected[1])
        assert float(quantizer.clip.ratio.grad[index]
                     * quantizer.clip.unit[index]) == pytest.approx(
            expected[2], rel=1e-3, abs=1e-4)


def test_moves_as_the_step_size_of_lsq_does():
    """On a grid that both have but for one level: LSQ's at 8 bits."""
    weight = normal(4, 50, seed=3)
    ours, lsq = built(weight, bits=8, group_size=-1), LSQWeight(4, 8, -1)
    clip = 3 * weight.abs().mean()
    ours.start_step(weight)
    lsq.step.start_(clip / 127)
    assert float(ours.current_clip(weight)) == pytest.approx(float(clip))
    grad = normal(4, 50, seed=4)
    for quantizer in (ours, lsq):
        quantizer(weight.clamp(-.99 * clip, .99 * clip)).backward(grad)
    assert float(ours.clip.ratio.grad) == pytest.approx(
        float(lsq.step.ratio.grad), rel=1e-3)


@pytest.mark.parametrize('bits, levels', GRIDS)
def test_codes_and_packed_values_are_those_of_the_forward(bits, levels):
    weight = normal(7, 5, seed=1)
    quantizer = built(weight, bits=bits, levels=levels)
    for _ in range(2):  # before it starts, and after
        codes, scale = quantizer.codes(weight)
        assert torch.equal(codes * scale, quantizer(weight))
        assert int(codes.abs().max()) <= quantizer.highest_code
        assert torch.equal(quantizer.decode(codes, quantizer.packed_state(
            weight)), quantizer(weight))
        quantizer.start_step(weight)
        with torch.no_grad():
            quantizer.clip.ratio.mul_(1.3)


def test_reshapes_to_T_first_and_starts_there():
    weight = normal(7, 5, seed=1)
    quantizer = built(weight, bits=2)
    before = weight.clone()
    assert quantizer(weight, rounding=False) is weight
    quantizer.after_step(weight)
    for ours, old in zip(weight.split(3), before.double().split(3)):
        bound = 2 * old.abs().mean()
        assert ours.flatten().tolist() == pytest.approx(
            old.clamp(-bound, bound).flatten().tolist())
    assert not torch.equal(weight, before)
    quantizer.start_step(weight)
    assert quantizer.current_clip(weight).tolist() == pytest.approx(
        [2 * float(each.abs().mean()) for each in weight.double().split(3)])


def test_once_rounding_begins_the_stored_weights_keep_their_values():
    """What a small clip value cuts off comes back with a greater one."""
    weight = normal(7, 5, seed=1)
    quantizer = built(weight, bits=2)
    quantizer.start_step(weight)
    before = weight.clone()
    first = quantizer(weight).detach()
    for factor in (.5, 2.):
        with torch.no_grad():
            quantizer.clip.ratio.mul_(factor)
        quantizer.after_step(weight)
    assert torch.equal(weight, before)
    assert torch.equal(quantizer(weight).detach(), first)


def test_without_projection_only_the_forward_clips():
    weight = normal(7, 5, seed=1)
    quantizer = built(weight, bits=2, projection=False)
    for _ in range(2):
        before = weight.clone()
        quantizer.after_step(weight)
        assert torch.equal(weight, before)
        quantizer.start_step(weight)


@pytest.mark.parametrize('levels', ['odd', 'even'])
def test_a_training_reshapes_first_and_learns_then(levels):
    model, report = make(levels=levels)
    get_state(model).set_phase('reshape')
    optimizer = sgd(model)
    train(model, optimizer, range(3))
    for layer in (model[0], model[3]):
        assert not layer.weight_quantizer.clip.started
        bounds = layer.weight_quantizer.current_clip(layer.weight)
        for bound, group in zip(bounds, layer.weight.split(
                layer.weight_quantizer.group_size)):
            # T of the clipped weights is a little less than the bound.
            assert group.abs().max() < 1.2 * bound
    get_state(model).set_phase('quantize')
    train(model, optimizer, range(3, 5))
    before = [value.clone() for value in report.learned_parameters().values()]
    assert len(before) == 2
    train(model, optimizer, range(5, 9))
    for old, value in zip(before, report.learned_parameters().values()):
        assert not torch.equal(old, value)


def test_another_reshaping_starts_it_anew():
    model, _ = make()
    optimizer = sgd(model)
    train(model, optimizer, range(2))
    get_state(model).set_phase('reshape')
    assert not model[0].weight_quantizer.clip.started
    train(model, optimizer, range(2))
    get_state(model).set_phase('quantize')
    weight = model[0].weight.detach().clone()
    model(normal(4, 3, 8, 8))
    torch.testing.assert_close(
        model[0].weight_quantizer.current_clip(weight)[0],
        2 * weight[:4].abs().mean())


def test_an_optimizer_that_was_there_before_takes_it():
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), .1, weight_decay=.1)
    report = quantize_(model, dict(weight=dict(bits=2, clip='learned')))
    with pytest.raises(RuntimeError, match='weight_quantizer.clip.ratio is '
                                           'learned'):
        train_one = copy.deepcopy(model)
        other = torch.optim.SGD([train_one[0].weight], .1)
        train_one(normal(2, 4)).sum().backward()
        other.step()
    groups = add_learned_parameters(get_state(model), optimizer)
    assert list(report.learned_parameters()) == [
        '0.weight_quantizer.clip.ratio']
    assert [group['weight_decay'] for group in groups] == [0.]


def test_it_starts_once():
    weight = normal(6, 5)
    quantizer = built(weight)
    quantizer.start_step(weight)
    before = quantizer.clip.detached
    quantizer.start_step(3 * weight)
    assert torch.equal(quantizer.clip.detached, before)


def test_what_it_is_stands_in_checkpoints_and_in_its_text():
    assert ScaleClipWeightScheme(bits=2, clip='learned', levels='even'
                                 ).describe() == \
        'ScaleClip 2 bits, group size 4, learned clip, 4 levels'
    assert repr(built(normal(3, 2), bits=2, levels='even',
                      projection=False)).startswith(
        "LearnedClipWeight(\n  bits=2, group_size=3, k=2.0, clip='learned', "
        "levels='even', projection=False")
    assert repr(built(normal(3, 2), bits=2, levels='odd')).splitlines(
        )[1] == \
        "  bits=2, group_size=3, k=2.0, clip='learned'"
    trained, _ = make()
    with pytest.raises(RuntimeError, match='learned clip'):
        make(clip='threshold')[0].load_state_dict(trained.state_dict())


def test_one_bit_is_refused():
    with pytest.raises(ValueError, match="clip is 'learned', allowed: at 1 "
                                         "bit 'threshold' or 'search'"):
        ScaleClipWeightScheme(bits=1, clip='learned')


def test_own_k_replaces_the_default():
    weight = normal(6, 5)
    quantizer = built(weight, k=2.5)
    quantizer.start_step(weight)
    expected = 2.5 * torch.stack([
        each.abs().mean() for each in weight.split(3)])
    torch.testing.assert_close(quantizer.current_clip(weight), expected)
