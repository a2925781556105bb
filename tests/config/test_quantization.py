"""The quantization config: what is allowed, what is refused, what wins."""
import copy
import json
import re
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdrq_mm.config import QuantConfig, Rule
from gdrq_mm.quantizers.scale_clip import (
    ScaleClipActivationScheme,
    ScaleClipWeightScheme,
)

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
NAMES = ['backbone.conv1', 'backbone.layer1.0.conv1', 'neck.fpn', 'head.fc']


def refused(config, *parts):
    """The config raises a ValueError whose message has all parts."""
    with pytest.raises(ValueError) as error:
        QuantConfig.from_dict(config)
    for part in parts:
        assert part in str(error.value), str(error.value)


# -- defaults -----------------------------------------------------------------

def test_defaults_are_float_layers_with_scale_clip_settings():
    config = QuantConfig.from_dict({})
    assert config == QuantConfig()
    assert config.weight == ScaleClipWeightScheme(
        type='ScaleClip', bits=None, group_size=4, k=None, clip='threshold',
        projection=True, levels='even')
    assert config.activation == ScaleClipActivationScheme(
        type='ScaleClip', bits=None, k=None, lr=0.01, site='input',
        threshold='mse', asymmetric=None)
    assert config.rules == ()


@pytest.mark.parametrize('config', [
    dict(weight=None), dict(activation=None), dict(rules=None),
    dict(rules=[]), dict(residual=None), dict(residual=dict(outputs=[])),
    dict(weight={}, activation={}, rules=(), residual={})])
def test_empty_sections_are_the_defaults(config):
    assert QuantConfig.from_dict(config) == QuantConfig()


def test_a_quant_config_is_taken_as_it_is():
    config = QuantConfig(weight=ScaleClipWeightScheme(bits=3))
    assert QuantConfig.from_dict(config) is config


def test_from_dict_leaves_its_argument_alone():
    config = dict(weight=dict(bits=4), activation=dict(bits=4), rules=[
        dict(match='*', weight=dict(bits=8))])
    before = copy.deepcopy(config)
    QuantConfig.from_dict(config).schemes('a')
    assert config == before


@pytest.mark.parametrize('bits', range(1, 9))
@pytest.mark.parametrize('group_size', [1, 4, 65536, -1])
def test_allowed_weight_values(bits, group_size):
    config = QuantConfig.from_dict(
        dict(weight=dict(bits=bits, group_size=group_size)))
    assert (config.weight.bits, config.weight.group_size) == (bits, group_size)


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('lr', [1e-6, 0.5, 1, 1.0])
def test_allowed_activation_values(bits, lr):
    config = QuantConfig.from_dict(dict(activation=dict(bits=bits, lr=lr)))
    assert (config.activation.bits, config.activation.lr) == (bits, lr)


# -- what is refused ----------------------------------------------------------

@pytest.mark.parametrize('config, field, hint', [
    (dict(weights={}), "'weights'", "did you mean 'weight'?"),
    (dict(weight=dict(bit=4)), "'bit'", "did you mean 'bits'?"),
    (dict(weight=dict(groupsize=4)), "'groupsize'",
     "did you mean 'group_size'?"),
    (dict(activation=dict(stie='relu')), "'stie'", "did you mean 'site'"),
    (dict(rules=[dict(match='*', skipp=True)]), "'skipp'",
     "did you mean 'skip'?"),
    (dict(rules=[dict(match='*', weight=dict(bitz=4))]), "'bitz'",
     "did you mean 'bits'?"),
    ({1: 2}, 'no field 1', "allowed: 'weight', 'activation', 'rules'"),
    (dict(weight={1: 2}), 'no field 1', "allowed: "),
    (dict(zzzzz=1), "'zzzzz'", "allowed: 'weight', 'activation', 'rules'")])
def test_unknown_field_is_refused_with_a_hint(config, field, hint):
    refused(config, field, hint)


@pytest.mark.parametrize('bits', [0, 9, -1, True, False, '4', 4.0, [4]])
@pytest.mark.parametrize('side', ['weight', 'activation'])
def test_bits_out_of_range_are_refused(side, bits):
    least = 1 if side == 'weight' else 2
    refused({side: dict(bits=bits)},
            f'{side}.bits is {bits!r}, allowed: {least} to 8, or None for '
            'float')


def test_one_bit_activations_are_refused():
    refused(dict(activation=dict(bits=1)), 'activation.bits is 1', '2 to 8')


@pytest.mark.parametrize('group_size', [0, -2, 1.5, True, None, '4'])
def test_group_size_out_of_range_is_refused(group_size):
    refused(dict(weight=dict(bits=4, group_size=group_size)),
            f'weight.group_size is {group_size!r}, allowed: a number of '
            'filters from 1 to 65536, or -1 for the whole layer')


@pytest.mark.parametrize('side', ['weight', 'activation'])
@pytest.mark.parametrize('name', ['ScaleClipp', None, 4, ['ScaleClip']])
def test_unknown_quantizer_is_refused(side, name):
    refused({side: dict(type=name)}, f'{side}.type is {name!r}', "'ScaleClip'")


@pytest.mark.parametrize('site', ['output', None, 'Input'])
def test_unknown_site_is_refused(site):
    refused(dict(activation=dict(site=site)),
            f"activation.site is {site!r}, allowed: 'input' or 'relu'")


@pytest.mark.parametrize('clip', ['max', None, 1.0])
def test_unknown_clip_is_refused(clip):
    refused(dict(weight=dict(clip=clip)),
            f'weight.clip is {clip!r}, allowed: '
            "'threshold', 'search' or 'learned'")


@pytest.mark.parametrize('projection', ['forward', None, 1])
def test_projection_must_be_a_bool(projection):
    refused(dict(weight=dict(projection=projection)),
            f'weight.projection is {projection!r}, allowed: True or False')


@pytest.mark.parametrize('lr', [0, -.1, 1e-300, 1.01, float('nan'), '0.1',
                                None, True])
def test_lr_out_of_range_is_refused(lr):
    refused(dict(activation=dict(lr=lr)),
            f'activation.lr is {lr!r}, allowed: a number from 1e-6 to 1')


@pytest.mark.parametrize('k', [0, -2., float('inf'), float('nan'), '2', True])
@pytest.mark.parametrize('side', ['weight', 'activation'])
def test_k_that_is_no_positive_number_is_refused(side, k):
    refused({side: dict(k=k)}, f'{side}.k is {k!r}, allowed: a positive '
            'number from 0.001 to 1000, or None for the default of the bits')


@pytest.mark.parametrize('side, fields', [
    ('weight', {}), ('activation', dict(threshold='mean')),
    ('activation', dict(threshold='nonzero'))])
@pytest.mark.parametrize('k', [1e-3, 2, 2.5, 1000])
@pytest.mark.filterwarnings('ignore:weight.k is')
def test_allowed_k(side, fields, k):
    config = QuantConfig.from_dict({side: dict(fields, bits=4, k=k)})
    assert getattr(config, side).k == k


OPTIONS = pytest.mark.parametrize('side, option', [
    ('weight', dict(group_size=8)), ('activation', dict(site='relu')),
    ('products', dict(threshold='mean'))])


@OPTIONS
def test_options_that_nothing_gives_bits_are_refused(side, option):
    asked = dict(option, type='ScaleClip')
    said = ', '.join(f'{key}={value!r}' for key, value in asked.items())
    refused({side: asked}, f'quantization.{side} has {said}, but neither it '
            'nor a rule gives it bits: all would stay float')
    rules = [dict(match='conv1', skip=True),
             dict(match='*', **{side: option})]
    refused({side: asked, 'rules': rules}, 'nor a rule gives it bits')


@OPTIONS
def test_options_to_which_rules_give_bits(side, option):
    config = QuantConfig.from_dict({
        side: option, 'rules': [dict(match='*', **{side: dict(bits=4)})]})
    weight, activation = config.schemes('a')
    scheme = dict(weight=weight, activation=activation,
                  products=config.products_of('a'))[side]
    assert scheme.bits == 4
    assert all(getattr(scheme, key) == option[key] for key in option)


@OPTIONS
def test_no_bits_where_that_is_said(side, option):
    config = QuantConfig.from_dict({side: dict(option, bits=None)})
    assert getattr(config, side).bits is None


@pytest.mark.parametrize('rule', [
    dict(match='fc'), dict(match='fc', skip=False),
    dict(match='fc', weight={}), dict(match='fc', weight=None)])
def test_rule_that_changes_nothing_is_refused(rule):
    refused(dict(rules=[rule]), "rule 'fc' changes nothing")


@pytest.mark.parametrize('change', [
    dict(weight=dict(bits=4)), dict(activation=dict(bits=4))])
def test_rule_that_skips_and_quantizes_is_refused(change):
    refused(dict(rules=[dict(match='fc', skip=True, **change)]),
            "rule 'fc' both skips")


@pytest.mark.parametrize('match', ['', None, 3, ['fc']])
def test_rule_without_a_pattern_is_refused(match):
    refused(dict(rules=[dict(match=match, skip=True)]), 'rule.match')
    refused(dict(rules=[dict(skip=True)]), 'rule.match')


def test_rule_skip_must_be_a_bool():
    refused(dict(rules=[dict(match='fc', skip='yes')]), "'fc'", "'yes'",
            'True or False')


@pytest.mark.parametrize('change, message', [
    (dict(weight=dict(bits=9)), 'weight.bits is 9'),
    (dict(activation=dict(lr=2)), 'activation.lr is 2'),
    (dict(activation=dict(site='x')), "activation.site is 'x'")])
def test_values_of_rules_are_checked_before_any_layer_is_seen(change, message):
    refused(dict(rules=[dict(match='fc', **change)]), message)


@pytest.mark.parametrize('config, message', [
    (dict(weight=4), 'weight is 4, allowed: a dict'),
    (dict(weight=0), 'weight is 0, allowed: a dict'),
    (dict(activation='ScaleClip'), "activation is 'ScaleClip'"),
    (dict(rules=dict(match='fc', skip=True)), 'allowed: a list of dicts'),
    (dict(rules=3), 'allowed: a list of dicts'),
    (dict(rules=['fc']), "quantization.rules[0] is 'fc', allowed: a dict"),
    (dict(rules=[dict(match='fc', weight=4)]), "rule 'fc': weight is 4")])
def test_section_of_a_wrong_type_is_refused(config, message):
    refused(config, message)


@pytest.mark.parametrize('config', [None, 4, 'ScaleClip', [dict(bits=4)]])
def test_config_that_is_no_dict_is_a_type_error(config):
    with pytest.raises(TypeError, match=type(config).__name__):
        QuantConfig.from_dict(config)


# -- k below 2 ----------------------------------------------------------------

@pytest.mark.parametrize('config', [
    dict(weight=dict(bits=4, k=1.9)),
    dict(rules=[dict(match='fc', weight=dict(bits=4, k=1.9))])])
def test_k_below_2_warns(config):
    with pytest.warns(UserWarning, match='weight.k is 1.9: below 2'):
        QuantConfig.from_dict(config)


def test_k_of_2_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for k in (2, 2.5):
            QuantConfig.from_dict(dict(weight=dict(bits=4, k=k)))
        QuantConfig.from_dict(dict(
            activation=dict(bits=4, k=1., threshold='mean')))
        # Nothing is stored clipped, so nothing shrinks.
        QuantConfig.from_dict(dict(weight=dict(bits=4, k=1.,
                                               projection=False)))


# -- rules --------------------------------------------------------------------

def make(*rules):
    return QuantConfig.from_dict(dict(
        weight=dict(bits=4, group_size=8), activation=dict(bits=5, lr=.1),
        rules=rules))


def test_first_match_wins():
    config = make(dict(match='backbone.conv1', weight=dict(bits=8)),
                  dict(match='backbone.*', weight=dict(bits=2)),
                  dict(match='*', skip=True))
    bits = [config.schemes(name)[0].bits for name in NAMES]
    assert bits == [8, 2, None, None]
    assert [config.rule_of(name).match for name in NAMES] == [
        'backbone.conv1', 'backbone.*', '*', '*']


def test_rule_replaces_only_the_fields_it_names():
    weight, activation = make(
        dict(match='head.fc', weight=dict(bits=8))).schemes('head.fc')
    assert weight == ScaleClipWeightScheme(bits=8, group_size=8)
    assert activation == ScaleClipActivationScheme(bits=5, lr=.1)


def test_rule_can_give_one_side_back_to_float():
    weight, activation = make(
        dict(match='head.fc', activation=dict(bits=None))).schemes('head.fc')
    assert weight.bits == 4 and activation.bits is None


def test_skip_leaves_both_sides_float_at_the_same_site():
    config = QuantConfig.from_dict(dict(
        weight=dict(bits=4), activation=dict(bits=4, site='relu'),
        rules=[dict(match='head.*', skip=True)]))
    weight, activation = config.schemes('head.fc')
    assert weight.bits is None and activation.bits is None
    assert activation.site == 'relu'


def test_layer_without_rule_gets_the_default():
    config = make(dict(match='neck.*', skip=True))
    assert config.rule_of('head.fc') is None
    assert config.schemes('head.fc') == (config.weight, config.activation)


@pytest.mark.parametrize('match, matched', [
    ('backbone.conv1', NAMES[:1]), ('*conv1', NAMES[:2]), ('*', NAMES),
    ('?eck.fpn', NAMES[2:3]), ('[hn]e*', NAMES[2:]), ('Head.fc', [])])
def test_patterns_match_whole_names_and_case(match, matched):
    config = make(dict(match=match, skip=True))
    assert [n for n in NAMES if config.rule_of(n)] == matched


@pytest.mark.parametrize('match, hint', [
    ('backbone.conv2', "'backbone.conv1'"), ('head.fcc', "'head.fc'"),
    ('backbone', "did you mean 'backbone.*'?"),
    ('backbone.layer1', "did you mean 'backbone.layer1.*'?"),
    ('zzzzzzzz', "allowed: 'backbone.conv1'")])
def test_pattern_that_matches_nothing_is_refused_with_a_hint(match, hint):
    config = make(dict(match='*fc', skip=True), dict(match=match, skip=True))
    with pytest.raises(ValueError) as error:
        config.check_rules(NAMES)
    assert f'{match!r} matches no layer' in str(error.value)
    assert hint in str(error.value)


@pytest.mark.parametrize('first', ['*', 'head.*', 'head.fc'])
def test_rule_that_decides_nothing_is_refused_with_the_one_before(first):
    late = make(dict(match=first, skip=True),
                dict(match='head.fc', weight=dict(bits=8)))
    with pytest.raises(ValueError, match=(
            "rule 'head.fc' decides nothing.*" + re.escape(repr(first)))):
        late.check_rules(NAMES)


def test_rule_that_decides_one_layer_of_many_is_allowed():
    make(dict(match='head.fc', weight=dict(bits=8)),
         dict(match='*', skip=True)).check_rules(NAMES)


@pytest.mark.parametrize('rule, value', [
    (dict(weight=dict(bits=9)), 'weight.bits is 9'),
    (dict(weight=dict(group_size=True)), 'weight.group_size is True'),
    (dict(activation=dict(lr=2.)), 'activation.lr is 2.0'),
    (dict(activation=dict(bit=2)), "activation has no field 'bit'")])
def test_bad_value_of_a_rule_names_the_rule(rule, value):
    refused(dict(rules=[dict(match='neck.*', **rule)]),
            "rule 'neck.*': ", value)


# -- to_dict ------------------------------------------------------------------

schemes = dict(
    weight=st.just({}) | st.fixed_dictionaries(dict(
        bits=st.none() | st.integers(1, 8)), optional=dict(
        group_size=st.integers(1, 64) | st.just(-1),
        k=st.floats(2, 9), projection=st.booleans(),
        clip=st.sampled_from(['threshold', 'search']))),
    activation=st.just({}) | st.fixed_dictionaries(dict(
        bits=st.none() | st.integers(2, 8)), optional=dict(
        threshold=st.sampled_from(['mean', 'nonzero', 'mse', 'learned']),
        lr=st.floats(1e-4, 1), site=st.sampled_from(['input', 'relu']))),
    residual=st.fixed_dictionaries(
        dict(outputs=st.lists(st.sampled_from(NAMES), max_size=2)),
        optional=dict(bits=st.integers(2, 8), lr=st.floats(1e-4, 1))))
rules = st.lists(st.one_of(
    st.fixed_dictionaries(dict(match=st.sampled_from(NAMES),
                               skip=st.just(True))),
    st.fixed_dictionaries(dict(
        match=st.sampled_from(NAMES),
        weight=st.fixed_dictionaries(dict(bits=st.integers(1, 8))))),
    st.fixed_dictionaries(dict(
        match=st.sampled_from(NAMES),
        activation=st.fixed_dictionaries(dict(bits=st.none()))))), max_size=3)


@given(st.fixed_dictionaries({}, optional=dict(rules=rules, **schemes)))
@PROPERTY
def test_to_dict_and_json_give_the_config_back(config):
    config = QuantConfig.from_dict(config)
    written = config.to_dict()
    assert QuantConfig.from_dict(written) == config
    assert QuantConfig.from_dict(json.loads(json.dumps(written))) == config
    for name in NAMES:
        assert QuantConfig.from_dict(written).schemes(name) == \
            config.schemes(name)


def test_to_dict_shows_all_values_in_primitive_types():
    assert make(dict(match='*', weight=dict(bits=8))).to_dict() == dict(
        weight=dict(type='ScaleClip', bits=4, group_size=8, k=None,
                    clip='threshold', projection=True,
                    levels='even'),
        activation=dict(type='ScaleClip', bits=5, k=None, lr=.1,
                        site='input', threshold='mse', asymmetric=None),
        rules=[dict(match='*', weight=dict(bits=8))])


def test_changing_what_to_dict_gave_does_not_change_the_config():
    config = make(dict(match='*', weight=dict(bits=8)))
    config.to_dict()['rules'][0]['weight']['bits'] = 2
    assert config.schemes('a')[0].bits == 8


def test_rules_may_be_objects():
    rule = Rule('fc', weight=dict(bits=8))
    assert make(rule) == make(dict(match='fc', weight=dict(bits=8)))


def test_residual_outputs_are_read_and_given_back():
    values = dict(residual=dict(outputs=['backbone.layer*.*'], k=6.,
                                threshold='mean'))
    config = QuantConfig.from_dict(values)
    assert config.residual.activation.bits == 8
    assert config.residual.outputs == ('backbone.layer*.*', )
    assert config.residual.activation.k == 6.
    assert QuantConfig.from_dict(config.to_dict()) == config
    assert 'residual' not in QuantConfig.from_dict({}).to_dict()


@pytest.mark.parametrize('residual, message', [
    (dict(outputs='backbone'), 'residual.outputs is .backbone., allowed: a '
     'list'),
    (dict(bits=None), 'residual.bits is None, allowed: 2 to 8'),
    (dict(bits=6), 'residual.outputs is None, allowed: a list of .*gdrq '
     'analyze residuals CONFIG" prints it'),
    (dict(outputs=['']), r"residual.outputs is \[''\], allowed: a list"),
    (dict(bits=9, outputs=['a']), 'residual.bits is 9, allowed: 2 to 8$'),
    (dict(bits=1, outputs=['a']), 'residual.bits is 1, allowed: 2 to 8$'),
    (dict(bits=True, outputs=['a']), 'residual.bits is True'),
    (dict(k=0, outputs=['a']), 'residual.k is 0, allowed: a positive number'),
    (dict(lr=2, outputs=['a']), 'residual.lr is 2, allowed: a number'),
    (dict(type='Scale', outputs=['a']), "residual.type is 'Scale', which is "
     "no activation quantizer; did you mean 'ScaleClip'"),
    (dict(output=['a']), "residual has no field 'output'; did you mean "
     "'outputs'")])
def test_a_wrong_residual_is_an_error(residual, message):
    with pytest.raises(ValueError, match=message):
        QuantConfig.from_dict(dict(residual=residual))


# -- values out of all proportion ---------------------------------------------

@pytest.mark.parametrize('section, field, value, allowed', [
    ('weight', 'group_size', 500_000_000, 'from 1 to 65536'),
    ('weight', 'group_size', 4., 'from 1 to 65536'),
    ('weight', 'k', 1e-300, 'from 0.001 to 1000'),
    ('activation', 'k', 1e300, 'from 0.001 to 1000')])
def test_absurd_values_are_refused(section, field, value, allowed):
    refused({section: {'bits': 4, field: value}},
            f'{section}.{field} is {value!r}', allowed)


def test_float_weights_are_measured_at_the_clip_values_of_least_loss():
    config = QuantConfig.from_dict(dict(
        weight=dict(bits=2, k=2., levels='even'), activation=dict(bits=4),
        rules=[dict(match='a', weight=dict(bits=8)),
               dict(match='b', weight=dict(type='LSQ', bits=3)),
               dict(match='c', activation=dict(bits=8)),
               dict(match='d', skip=True)]))
    measured = config.for_float_weights()
    for name, bits in dict(a=8, c=2, other=2).items():
        weight, activation = measured.schemes(name)
        assert (weight.clip, weight.k, weight.bits, weight.levels) == (
            'search', None, bits, 'even')
        assert activation == config.schemes(name)[1]
    # Its step begins where the weights at hand put it.
    assert measured.schemes('b') == config.schemes('b')
    assert measured.schemes('d')[0].bits is None
    assert measured.for_float_weights() == measured
    assert QuantConfig.from_dict(measured.to_dict()) == measured


@pytest.mark.parametrize('config', [
    dict(activation=dict(bits=8, k=3.)),
    dict(products=dict(bits=8, k=3.)),
    dict(residual=dict(outputs=['a'], k=3.)),
    dict(products=dict(bits=8), rules=[
        dict(match='a', products=dict(k=3.))])])
def test_a_default_that_excludes_a_field_is_named(config):
    refused(config, "k is 3.0, allowed: with threshold='mse': None",
            "threshold='nonzero' or 'mean' takes one")
    mean = copy.deepcopy(config)
    next(iter(mean.values()))['threshold'] = 'mean'
    assert '3.0' in str(QuantConfig.from_dict(mean).to_dict())


def test_all_fields_are_those_of_products_that_a_rule_asks_for_too():
    config = QuantConfig.from_dict(dict(
        weight=dict(bits=4), rules=[dict(match='a', products=dict(bits=4))]))
    rule, = config.with_all_fields().to_dict()['rules']
    section = QuantConfig.from_dict(dict(
        weight=dict(bits=4), products=dict(bits=4))).to_dict()['products']
    assert rule['products'] == section and len(section) > 4
