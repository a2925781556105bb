"""Bits by an integer program, against brute force."""
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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

BITS = (2, 3, 4, 8)


def make_layers(seed, number=4, fixed=0):
    import random
    rng = random.Random(seed)

    def noises():
        return {bits: rng.uniform(.5, 2) * 4.**-bits for bits in BITS}

    return [Layer([f'layer{index}'], rng.randrange(16, 4000),
                  rng.randrange(1, 16), rng.randrange(100, 10**6), noises(),
                  noises(), (8 if index == 1 else 4), fixed=index < fixed)
            for index in range(number)]


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
        layer.weights, layer.groups = 1000, 10
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
    layer = Layer(['a'], weights=10, groups=2, macs=100,
                  weight_noise={}, activation_noise={}, activation_bits=4)
    assert layer.cost('size', Bits(3, 4)) == 4 + 8
    assert layer.cost('bops', Bits(3, 4)) == 1200
    assert relative_cost([layer], 'bops', {'a': Bits(2, 4)}) == 8 / 1024


def test_rules_give_the_chosen_bits_and_keep_what_else_was_said():
    from gdrq_mm.config import QuantConfig
    config = dict(
        weight=dict(bits=2), activation=dict(bits=4),
        rules=[dict(match='skipped', skip=True),
               dict(match='b*', weight=dict(bits=8, k=2.5))])
    layers = [Layer([name], 10, 1, 10, {}, {}, 4) for name in
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


def test_the_metric_is_predicted_between_measured_ones():
    measured = [(0., 80.), (.1, 70.), (.2, 74.), (.4, 50.)]
    assert predict_metric(0., measured) == 80.
    assert predict_metric(.15, measured) == 72.  # the two are made one
    assert predict_metric(.3, measured) == 61.
    assert predict_metric(9., measured) == 50.
