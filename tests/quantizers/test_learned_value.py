"""Learned values: SGD moves them as it would the values themselves, and no
optimizer drives a step size through zero."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.quantizers.learned_value import LearnedValue


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 10), st.lists(st.floats(-1, 1), min_size=1,
                                     max_size=5))
def test_sgd_moves_the_value_by_the_gradient_of_the_value(start, gradients):
    """As if the optimizer held the value: in float64, one step at a time."""
    value = LearnedValue(least=None)
    value.start_(start)
    optimizer = torch.optim.SGD(value.parameters(), .1, momentum=.9)
    expected, speed = start, 0.
    for gradient in gradients:
        optimizer.zero_grad()
        (value() * gradient).backward()
        optimizer.step()
        speed = .9 * speed + gradient
        expected -= .1 * speed
        assert float(value.detached) == pytest.approx(
            expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize('start', [1e-3, 1.])
def test_adam_moves_a_share_of_the_value(start):
    value = LearnedValue()
    value.start_(start)
    optimizer = torch.optim.Adam(value.parameters(), 1e-3)
    value().backward()
    optimizer.step()
    assert float(value.detached) == pytest.approx(start * (1 - 1e-3))


def test_a_ratio_below_the_least_is_led_back():
    value = LearnedValue(2)
    value.start_(torch.tensor([.1, .2]))
    value.ratio.data.copy_(torch.tensor([-3., 1.]))
    assert value.detached.tolist() == pytest.approx([.1 / 64, .2])
    value().sum().backward()
    assert value.ratio.grad.tolist() == pytest.approx([10., 5.])


def test_groups_of_zeros_start_with_the_others():
    value = LearnedValue(3)
    value.start_(torch.tensor([0., .1, .3]))
    assert value.detached.tolist() == pytest.approx([.2, .1, .3])


def test_nothing_but_zeros_is_no_start():
    value, offset = LearnedValue(2), LearnedValue(least=None)
    value.start_(torch.zeros(2))
    offset.start_(0., 0.)
    for each in (value, offset):
        assert not each.started
        assert not any(entry.any() for entry in each.state_dict().values())


def test_a_value_in_other_units_and_below_zero():
    offset = LearnedValue(least=None)
    offset.start_(.5, -.2)
    assert float(offset.detached) == pytest.approx(-.2)
    offset().backward()
    assert float(offset.ratio.grad) == pytest.approx(2.)


@pytest.mark.parametrize('kind', ['LSQ', 'LSQPlus', 'PACT'])
def test_adamw_at_a_learning_rate_for_weights_keeps_8_bit_layers_alive(kind):
    """A step size of 8 bits starts below ten steps of Adam; training took
    the whole layer to zero when the optimizer held it as it is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    quantize_(model, dict(weight=dict(type=kind, bits=8),
                          activation=dict(type=kind, bits=8)))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    images = torch.randn(64, 16)
    labels = images[:, :4].argmax(1)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < .2 * losses[0]


def test_a_value_that_has_not_started_has_the_gradient_of_its_ratio():
    value = LearnedValue(least=None)
    assert not value.started
    (3 * value()).backward()
    assert float(value.ratio.grad) == 3
