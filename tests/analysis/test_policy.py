"""Bits by an integer program, against brute force."""
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.analysis.policy import (
    Bits,
    Layer,
    format_rules,
    make_rules,
    predict_metric,
    predicted_noise,
    propose,
    relative_cost,
)
from gdrq_mm.analysis.rules import rules_of_layers
from gdrq_mm.config import QuantConfig
from gdrq_mm.plan import make_plan

BITS = (2, 3, 4, 8)


class Parts(nn.ModuleDict):
    """A model whose parts are read by name."""


def packed(weights, groups):
    """Bytes by bits: codes, and a float32 a group."""
    return {bits: -(-weights * bits // 8) + 4 * groups
            for bits in range(1, 9)}


def make_layers(seed, number=4, fixed=0):
    import random
    rng = random.Random(seed)

    def noises():
        return {bits: rng.uniform(.5, 2) * 4.**-bits for bits in BITS}

    layers = []
    for index in range(number):
        weights, groups = rng.randrange(16, 4000), rng.randrange(1, 16)
        layers.append(Layer(
            [f'layer{index}'], weights, packed(weights, groups),
            rng.randrange(100, 10**6), noises(), noises(),
            (8 if index == 1 else 4), fixed=index < fixed))
    return layers


def brute_force(layers, budgets, activation_bits):
    """The least noise of all policies within the budgets."""
    free = [layer for layer in layers if not layer.fixed]
    best = None
    for bits in itertools.product(
            itertools.starmap(Bits, itertools.product(BITS, activation_bits)),
            repeat=len(free)):
        choice = {layer.names[0]: each for layer, each in zip(free, bits)}
        if all(relative_cost(layers, kind, choice) <= ratio
               for kind, ratio in budgets.items()):
            noise = predicted_noise(layers, choice)
            best = noise if best is None else min(best, noise)
    return best


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(.08, .3),
       bops=st.floats(.005, .07), both=st.booleans(), fixed=st.integers(0, 1))
def test_no_policy_within_the_budget_has_less_noise(seed, size, bops, both,
                                                    fixed):
    layers = make_layers(seed, number=3 + fixed, fixed=fixed)
    budgets = dict(bops=bops) if not both else dict(size=size, bops=bops)
    expected = brute_force(layers, budgets, (2, 4))
    try:
        choice = propose(layers, budgets, BITS, (2, 4))
    except ValueError as error:
        assert expected is None, error
        return
    assert all(relative_cost(layers, kind, choice) <= ratio * (1 + 1e-9)
               for kind, ratio in budgets.items())
    assert predicted_noise(layers, choice) == pytest.approx(expected)
    assert fixed == 0 or 'layer0' not in choice


def test_a_sensitive_layer_gets_the_bits():
    layers = make_layers(0)
    layers[2].weight_noise = {bits: 100. * 4.**-bits for bits in BITS}
    for layer in layers:
        layer.weights, layer.packed = 1000, packed(1000, 10)
    choice = propose(layers, dict(size=.13), BITS, [4])
    assert choice['layer2'].weight == max(
        bits.weight for bits in choice.values()) > 3
    assert {bits.activation for bits in choice.values()} == {4}


def test_inputs_keep_their_bits_where_none_are_given():
    """Though fewer would do as well: the size says nothing of them."""
    layers = make_layers(3)
    layers[1].activation_noise = dict.fromkeys(BITS, .5)
    choice = propose(layers, dict(size=.13), BITS)
    assert {name: bits.activation for name, bits in choice.items()} == dict(
        layer0=4, layer1=8, layer2=4, layer3=4)
    assert len({bits.weight for bits in choice.values()}) > 1


def test_more_bits_are_never_worse():
    layer = make_layers(1, 1)[0]
    layer.weight_noise = {2: .5, 3: .1, 4: .2, 8: .3}
    layer.activation_noise = dict.fromkeys(BITS, 0.)
    assert [layer.noise(Bits(bits, 4)) for bits in BITS] == [.5, .1, .1, .1]


def test_budgets_that_cannot_be_met_say_what_can():
    layers = make_layers(2)
    with pytest.raises(ValueError, match=r'size=0.01 cannot be met: .*'
                       r'between 0.0[67]\d* and 0.2[56]\d* of the float'):
        propose(layers, dict(size=.01), BITS, [4])
    with pytest.raises(ValueError, match="'sise' is unknown"):
        propose(layers, dict(sise=.1), BITS, [4])
    with pytest.raises(ValueError, match='nothing to choose'):
        propose(make_layers(2, 2, fixed=2), dict(size=.5), BITS, [4])


def test_costs_are_those_of_packed_files_and_of_bit_operations():
    layer = Layer(['a'], weights=10, packed=packed(10, 2), macs=100,
                  weight_noise={}, activation_noise={}, activation_bits=4)
    assert layer.cost('size', Bits(3, 4)) == 4 + 8
    assert layer.cost('bops', Bits(3, 4)) == 1200
    assert relative_cost([layer], 'bops', {'a': Bits(2, 4)}) == 8 / 1024


def test_rules_give_the_chosen_bits_and_keep_what_else_was_said():
    config = dict(
        weight=dict(bits=2), activation=dict(bits=4),
        rules=[dict(match='skipped', skip=True),
               dict(match='b*', weight=dict(bits=8, k=2.5))])
    layers = [Layer([name], 10, packed(10, 1), 10, {}, {}, 4) for name in
              ('a', 'b.0', 'c[0]', 'skipped')]
    choice = {'a': Bits(2, 4), 'b.0': Bits(3, 4), 'c[0]': Bits(2, 8)}
    rules = make_rules(layers, choice, config)
    pasted = eval('dict(' + format_rules(rules) + ')')['rules']
    assert pasted == rules
    parsed = QuantConfig.from_dict(dict(config, rules=pasted))
    for name, bits in choice.items():
        weight, activation = parsed.schemes(name)
        assert (weight.bits, activation.bits) == bits
    assert parsed.schemes('b.0')[0].k == 2.5
    assert parsed.rule_of('skipped').skip
    assert parsed.rule_of('a') is None  # as the config has it


QUANTIZATION = dict(
    weight=dict(bits=4), activation=dict(bits=4, site='relu'),
    rules=[dict(match='body.0', weight=dict(bits=8)),
           dict(match='body.1', activation=dict(bits=8)),
           dict(match='body.[23]', weight=dict(bits=2),
                activation=dict(bits=8)),
           dict(match='body.*', skip=True),
           dict(match='head', weight=dict(bits=None),
                activation=dict(bits=None))])


@pytest.mark.parametrize('first', [2, 4, 8])
@pytest.mark.parametrize('third', [2, 4])
def test_rules_can_be_pasted_whatever_was_chosen(first, third):
    """Narrow ones stand before wide ones, and none decides nothing."""
    model = nn.Module()
    model.body = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
        nn.Conv2d(4, 4, 3))
    model.tail, model.head = nn.Linear(4, 4), nn.Linear(4, 4)
    plans = make_plan(model, QuantConfig.from_dict(QUANTIZATION))
    choice = {'body.0': Bits(first, 4), 'body.2': Bits(third, 8),
              'tail': Bits(4, 4)}
    layers = [Layer([name], 10, packed(10, 1), 10, {}, {}, 4,
                    name not in choice)
              for name in ('body.0', 'body.2', 'body.4', 'tail', 'head')]
    rules = make_rules(layers, choice, QUANTIZATION, plans)
    found = {plan.name: plan for plan in quantize_(
        model, dict(QUANTIZATION, rules=rules)).layers}
    for name, bits in choice.items():
        assert (found[name].weight.bits, found[name].activation.bits) == bits
    assert not found['head'].quantized and not found['body.4'].quantized
    for name in ('body.1', 'body.3'):
        assert found[name].activation.bits == 8


def test_rules_for_the_default_bits_stand_before_wider_ones():
    config = dict(weight=dict(bits=4), activation=dict(bits=4),
                  rules=[dict(match='*', weight=dict(bits=8))])
    layers = [Layer([name], 10, packed(10, 1), 10, {}, {}, 4) for name in 'ab']
    assert make_rules(layers, {'a': Bits(4, 4), 'b': Bits(8, 4)}, config) == [
        dict(match='a', weight=dict(bits=4)), *config['rules']]


def test_rules_keep_what_was_said_of_products():
    model = Parts({name: nn.MultiheadAttention(4, 2)
                           for name in 'ab'})
    config = dict(weight=dict(bits=4), activation=dict(bits=4), rules=[
        dict(match='a', weight=dict(bits=8), products=dict(bits=8)),
        dict(match='b', products=dict(bits=3))])
    plans = make_plan(model, QuantConfig.from_dict(config))
    layers = [Layer([name], 10, packed(10, 1), 10, {}, {}, 4) for name in 'ab']
    rules = make_rules(layers, {'a': Bits(2, 4), 'b': Bits(4, 4)}, config,
                       plans)
    found = {plan.name: plan for plan in quantize_(
        model, dict(config, rules=rules)).layers}
    assert found['a'].weight.bits == 2
    assert [found[f'{name}.product_quantizers'].activation.bits
            for name in 'ab'] == [8, 3]
    assert rules_of_layers(config, Parts({
        name: nn.MultiheadAttention(4, 2) for name in 'ab'})) == [
            dict(match='a', weight=dict(bits=8))]


class Attention(nn.Module):
    """Products of its own, between layers that compute none."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.q(x) @ self.k(x).mT


@pytest.mark.parametrize('bits', [4, None])
def test_rules_of_layers_beside_products_do_not_speak_of_them(bits):
    model = Parts(dict(a=Attention()))
    config = dict(
        weight=dict(bits=4), activation=dict(bits=4), products=dict(bits=8),
        rules=[dict(match='a*', weight=dict(bits=8),
                    products=dict(bits=bits))])
    plans = make_plan(model, QuantConfig.from_dict(config))
    layers = [Layer([f'a.{name}'], 10, packed(10, 1), 10, {}, {}, 4)
              for name in 'qk']
    rules = make_rules(layers, {'a.q': Bits(2, 4), 'a.k': Bits(8, 4)}, config,
                       plans)
    found = {plan.name: plan for plan in quantize_(
        model, dict(config, rules=rules)).layers}
    assert [found[f'a.{name}'].weight.bits for name in 'qk'] == [2, 8]
    products = found['a.product_quantizers']
    assert products.quantized is (bits is not None)
    assert not bits or products.activation.bits == bits


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_bits_that_broke_the_outputs_are_not_chosen(bad):
    layers = make_layers(5)
    for layer in layers:
        layer.weights, layer.packed = 1000, packed(1000, 10)
    layers[0].weight_noise = {2: bad, 3: .1, 4: .2, 8: .01}
    assert [layers[0].noise(Bits(bits, 4)) for bits in BITS] == \
        pytest.approx([math.inf, .1, .1, .01], abs=.1)
    assert propose(layers, dict(size=.12), BITS)['layer0'].weight > 2
    layers[0].weight_noise[8] = bad
    assert propose(layers, dict(size=1), BITS)['layer0'].weight in (3, 4)
    with pytest.raises(ValueError, match=r'with layer0 at \[2, 4\], \[8, 4'
                       r'\] bits .* are not finite, .*: allow more bits'):
        propose(layers, dict(size=1), [2, 8])


def test_a_layer_may_keep_its_bits():
    layers = make_layers(6)
    layers[2].kept, layers[2].weight_noise = Bits(4, 8), {}
    choice = propose(layers, dict(size=.13), BITS, [2, 4])
    assert choice['layer2'] == (4, 8)
    assert {bits.activation for bits in choice.values()} <= {2, 4, 8}


def test_the_metric_is_predicted_between_measured_ones():
    measured = [(0., 80.), (.1, 70.), (.2, 74.), (.4, 50.)]
    assert predict_metric(0., measured) == 80.
    assert predict_metric(.15, measured) == 72.  # the two are made one
    assert predict_metric(.3, measured) == 61.
    assert predict_metric(9., measured) == 50.


def test_no_metric_is_as_bad_as_the_worst_one():
    measured = [(0., 80.), (.1, 70.), (.2, math.nan), (math.nan, 3.)]
    assert predict_metric(.2, measured) == 70.
    assert predict_metric(math.inf, measured) == 70.
    assert math.isnan(predict_metric(.2, [(0., math.nan)]))


def test_a_metric_may_be_better_where_it_is_less():
    measured = [(0., .1), (.1, .3), (.2, .2), (.4, .5), (.3, math.nan)]
    assert predict_metric(0., measured, 'less') == .1
    assert predict_metric(.15, measured, 'less') == .25
    assert predict_metric(.4, measured, 'less') == .5
    assert predict_metric(.3, measured, 'less') == .5  # as bad as the worst
