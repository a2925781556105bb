"""Averages of a model whose quantizers had no range when it was copied."""
import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.training import get_state
from gdrq_mm.training.copies import LOOKS

TYPES = dict(
    ScaleClip=dict(weight=dict(bits=4), activation=dict(bits=4)),
    LSQ=dict(weight=dict(type='LSQ', bits=4),
             activation=dict(type='LSQ', bits=4)),
    LSQPlus=dict(weight=dict(type='LSQPlus', bits=4),
                 activation=dict(type='LSQPlus', bits=4)),
    PACT=dict(weight=dict(type='DoReFa', bits=4),
              activation=dict(type='PACT', bits=4)),
    Direct=dict(weight=dict(type='DirectQuantization', bits=4),
                activation=dict(type='DirectQuantization', bits=4)))


def make_model(config):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    quantize_(model, config)
    return model


def train(model, steps, skipped=0, averaged=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for index in range(steps):
        model(torch.randn(2, 3, 9, 9)).square().mean().backward()
        if index >= skipped:
            optimizer.step()
            optimizer.zero_grad()
        if averaged is not None:
            averaged.update_parameters(model)


def entries(model):
    return {f'{name}.{key}': value
            for name, layer in get_state(model).layers.items()
            for key, value in layer.quantizer_state().items()}


@pytest.mark.parametrize('update_buffers', [False, True])
@pytest.mark.parametrize('name', TYPES)
def test_an_average_starts_where_the_quantizers_start(name, update_buffers):
    """Steps are skipped at first (accumulation, AMP overflow), while the
    average goes on."""
    model = make_model(TYPES[name])
    averaged = ExponentialMovingAverage(
        model, momentum=.01, update_buffers=update_buffers)
    train(model, steps=6, skipped=3, averaged=averaged)
    ours, theirs = entries(model), entries(averaged.module)
    for key, value in ours.items():
        if value.is_floating_point():
            assert torch.allclose(theirs[key], value, rtol=.15,
                                  atol=1e-3), key
        elif not key.endswith('num_updates'):
            assert torch.equal(theirs[key], value), key
    x = torch.randn(2, 3, 9, 9)
    ours, theirs = model.eval()(x), averaged.module.eval()(x)
    assert (ours - theirs).norm() < .2 * ours.norm()


def test_an_average_turns_signed_with_its_model():
    model = make_model(TYPES['LSQ'])
    averaged = ExponentialMovingAverage(model, momentum=.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with pytest.warns(UserWarning, match='have codes from now on') as caught:
        for index in range(103):
            x = torch.rand(2, 3, 9, 9)
            model(x if index < 2 else x - .5).mean().backward()
            optimizer.step()
            averaged.update_parameters(model)
    assert len(caught) == 1  # told once
    ours, theirs = (
        get_state(each).layers['0'].input_quantizer.code_range()
        for each in (model, averaged.module))
    assert ours.low == theirs.low == -8
    assert theirs.scale == pytest.approx(ours.scale)


def test_a_copy_that_trains_finds_ranges_of_its_own():
    model = make_model(TYPES['LSQ'])
    other = copy.deepcopy(model)
    train(model, steps=2)
    assert not any(value.any() for value in entries(other).values())


@pytest.mark.parametrize('kept', [slice(None), slice(0, 0)],
                         ids=['float buffers', 'parameters alone'])
@pytest.mark.parametrize('name', ['LSQ', 'PACT', 'Direct'])
def test_an_average_by_hand_that_could_train_starts_as_well(name, kept):
    """Few call ``requires_grad_(False)``; flags are no floats, and an average
    of float entries leaves them as they were copied."""
    model = make_model(TYPES[name])
    averaged = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(4):
        model(torch.randn(2, 3, 9, 9)).square().mean().backward()
        optimizer.step()
        ours, theirs = (
            [*each.parameters(), *list(each.buffers())[kept]]
            for each in (model, averaged))
        with torch.no_grad():
            for mine, other in zip(ours, theirs):
                if mine.is_floating_point():
                    other.lerp_(mine, .01)
    x = torch.randn(2, 3, 9, 9)
    ours, theirs = model.eval()(x), averaged.eval()(x)
    assert (ours - theirs).norm() < .2 * ours.norm()


def test_an_average_by_hand_may_begin_late():
    model = make_model(TYPES['LSQ'])
    averaged = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(2 * LOOKS + 20):
        model(torch.randn(2, 3, 9, 9)).square().mean().backward()
        optimizer.step()
        if step > 1.5 * LOOKS:
            with torch.no_grad():
                for mine, other in zip(model.parameters(),
                                       averaged.parameters()):
                    other.lerp_(mine, .01)
    ours, theirs = entries(model), entries(averaged)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=.2, atol=0)


def test_the_average_of_torch_starts_where_steps_were_skipped():
    model = make_model(TYPES['LSQ'])
    averaged = torch.optim.swa_utils.AveragedModel(
        model, use_buffers=False,
        avg_fn=lambda averaged, new, _: averaged.lerp(new, .01))
    train(model, steps=6, skipped=3, averaged=averaged)
    x = torch.randn(2, 3, 9, 9)
    ours, theirs = model.eval()(x), averaged.module.eval()(x)
    assert (ours - theirs).norm() < .2 * ours.norm()


def test_a_copy_that_loads_a_checkpoint_keeps_its_ranges():
    """What it loads is no average."""
    model = make_model(TYPES['LSQ'])
    other = copy.deepcopy(model)
    train(model, steps=1)
    loaded = copy.deepcopy(model.state_dict())
    for key in loaded:
        if key.endswith('step.unit'):
            loaded[key] *= 3
    other.load_state_dict(loaded)
    train(model, steps=2)
    assert all(torch.equal(value, loaded[key])
               for key, value in other.state_dict().items())


def test_an_average_is_found_by_any_of_its_parameters():
    """The last one may never get a gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    model.unused = nn.Linear(2, 2)
    quantize_(model, TYPES['LSQ'])
    averaged = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(3):
        x = torch.randn(2, 3, 9, 9)
        model[2](model[1](model[0](x))).square().mean().backward()
        optimizer.step()
        for ours, theirs in zip(averaged.parameters(), model.parameters()):
            ours.data.lerp_(theirs.data, .01)
    unit = get_state(averaged).layers['0'].input_quantizer.step.unit
    assert float(unit) > 0


def test_a_copy_of_a_trained_model_has_not_stepped():
    model = make_model(TYPES['LSQ'])
    train(model, steps=2)
    assert get_state(model).has_stepped
    assert not get_state(copy.deepcopy(model)).has_stepped


def test_an_average_has_the_zero_point_that_comes_in_the_first_steps():
    model = make_model(TYPES['ScaleClip'])
    averaged = ExponentialMovingAverage(model, momentum=1e-4,
                                        update_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    for index in range(30):
        x = torch.randn(2, 3, 9, 9)
        x = x.relu() if index < 5 else nn.functional.silu(2 * x)
        model(x).mean().backward()
        optimizer.step()
        averaged.update_parameters(model)
    ours, theirs = (
        get_state(each).layers['0'].input_quantizer.code_range()
        for each in (model, averaged.module))
    assert ours.zero_point == theirs.zero_point > 0
    assert theirs.scale == pytest.approx(ours.scale, rel=.2)


def test_ranges_are_handed_on_once():
    """Afterwards the average is that of mmengine alone."""
    model = make_model(TYPES['LSQ'])
    averaged = ExponentialMovingAverage(model, momentum=.01)
    train(model, steps=2, averaged=averaged)
    ratio = get_state(averaged.module).layers['0'].weight_quantizer.step.ratio
    with torch.no_grad():
        ratio.fill_(3.)
    train(model, steps=1)
    assert float(ratio) == 3.
