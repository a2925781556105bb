"""What becomes of every layer, decided before any change."""
import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from gdrq_mm import quantize_
from gdrq_mm.config import QuantConfig
from gdrq_mm.layers import QUANT_LAYERS, QuantLayer, register_quant_layer
from gdrq_mm.plan import make_plan

W4A4 = dict(weight=dict(bits=4), activation=dict(bits=4))


class OwnConv(nn.Conv2d):
    """Could compute anything."""


class Block(nn.Module):

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        x = self.relu(self.bn(self.conv1(x)))
        return self.relu(self.conv2(x))


def plan_of(model, config=W4A4):
    return {plan.name: plan
            for plan in make_plan(model, QuantConfig.from_dict(config))}


def test_plan_lists_layers_with_a_matrix_in_order():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                          nn.Flatten(), nn.Linear(4, 2))
    assert list(plan_of(model)) == ['0', '4']


def test_plan_changes_nothing():
    model = Block()
    before = copy.deepcopy(model.state_dict())
    classes = [type(module) for module in model.modules()]
    make_plan(model, QuantConfig.from_dict(
        dict(weight=dict(bits=1), activation=dict(bits=2, site='relu'))))
    assert [type(module) for module in model.modules()] == classes
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[key], before[key])
               for key in before)


def test_schemes_and_reasons_follow_the_rules():
    plan = plan_of(Block(), dict(**W4A4, rules=[
        dict(match='conv1', weight=dict(bits=8), activation=dict(bits=None)),
        dict(match='conv*', skip=True)]))
    conv1, conv2 = plan['conv1'], plan['conv2']
    assert conv1.quantized and conv1.weight.bits == 8
    assert conv1.activation is None and conv1.sites == 0
    assert conv1.reason == "rule 'conv1'"
    assert not conv2.quantized and conv2.reason == "rule 'conv*': skip"


def test_input_site_gives_every_layer_one_threshold_and_no_relu():
    plan = plan_of(Block())
    assert list(plan) == ['conv1', 'conv2']
    assert all(layer.sites == 1 and layer.reason == 'default'
               for layer in plan.values())


def test_relu_site_plans_a_threshold_a_call_site():
    plan = plan_of(Block(), dict(
        weight=dict(bits=4), activation=dict(bits=4, site='relu')))
    assert list(plan) == ['conv1', 'relu', 'conv2']
    assert plan['relu'].sites == 2 and plan['relu'].weight is None
    assert plan['conv1'].activation is not None  # falls back to its input


@pytest.mark.parametrize('rule, reason', [
    (dict(skip=True), "rule 'relu': skip"),
    (dict(activation=dict(bits=None)), "rule 'relu': no bits asked for")])
def test_relu_can_be_left_float_by_rule(rule, reason):
    plan = plan_of(Block(), dict(
        weight=dict(bits=4), activation=dict(bits=4, site='relu'),
        rules=[dict(match='relu', **rule)]))
    assert not plan['relu'].quantized and plan['relu'].reason == reason


RELU_SITE = dict(weight=dict(bits=4), activation=dict(bits=4, site='relu'))


@pytest.mark.parametrize('config, rule, why', [
    (RELU_SITE, dict(match='relu', weight=dict(bits=8)),
     r"'relu': weight=.*none of its layers \(relu: a ReLU has no weight\)"),
    (dict(weight=dict(bits=4)), dict(match='conv*', activation=dict(lr=.1)),
     r'conv1: its activation has no bits\): give it bits'),
    ({}, dict(match='conv1', weight=dict(group_size=2)),
     "conv1: rule 'conv1': no bits asked for"),
    (RELU_SITE, dict(match='relu', weight=dict(bits=8),
                     activation=dict(bits=8)), 'relu: a ReLU has no weight')])
def test_fields_of_a_rule_that_act_on_nothing_are_refused(config, rule, why):
    with pytest.raises(ValueError, match=why):
        plan_of(Block(), dict(config, rules=[rule]))


def test_a_rule_for_a_layer_that_stays_float_is_refused_with_the_reason():
    with pytest.raises(ValueError, match='no quantized form of Bilinear'):
        plan_of(nn.Sequential(nn.Bilinear(3, 4, 3)), dict(
            rules=[dict(match='0', weight=dict(bits=8))]))


def test_a_rule_acts_where_one_of_its_layers_has_bits():
    plan = plan_of(Block(), dict(RELU_SITE, rules=[
        dict(match='*', weight=dict(bits=8), activation=dict(bits=2))]))
    assert plan['relu'].activation.bits == 2
    assert plan['conv1'].weight.bits == 8


def test_no_bits_is_said():
    plan = plan_of(Block(), {})
    assert not any(layer.quantized for layer in plan.values())
    assert plan['conv1'].reason == 'default: no bits asked for'


@pytest.mark.parametrize('layer, reason', [
    (OwnConv(3, 4, 3), 'OwnConv is a Conv2d that may compute something else'),
    (nn.Bilinear(3, 4, 3), 'no quantized form of Bilinear'),
    (nn.Linear(3, 4, dtype=torch.complex64), 'its weight is torch.complex64'),
    (nn.MultiheadAttention(4, 2, kdim=3), 'have other widths than queries'),
    (nn.MultiheadAttention(4, 2, add_bias_kv=True), 'keys and values of its'),
    (parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
     'ParametrizedConv2d is a Conv2d that may compute something else'),
    (parametrizations.spectral_norm(nn.Linear(3, 4)),
     'ParametrizedLinear is a Linear that may compute something else')])
def test_layer_that_is_not_plain_is_left_with_the_reason(layer, reason):
    plan = plan_of(nn.Sequential(layer, nn.Linear(4, 4)))
    assert not plan['0'].quantized and reason in plan['0'].reason
    assert plan['1'].quantized


@pytest.mark.filterwarnings('ignore:.*weight_norm:FutureWarning')
class Table(nn.Embedding):
    """Is registered, as tables are not by themselves."""


class Scaled(nn.Module):
    """Its weight has one dimension."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x):
        return x * self.weight


class Kernel(nn.Module):
    """Its weight has another name."""

    def __init__(self):
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.randn(4, 8)), None

    def forward(self, x):
        return nn.functional.linear(x, self.kernel)


class QuantKernel(QuantLayer, Kernel):
    weight_name = 'kernel'

    def forward(self, x):
        return nn.functional.linear(self.quantized_input(x),
                                    self.quantized_weight())


@pytest.mark.parametrize('layer, quantized, x', [
    (Table(8, 8), None, torch.arange(3)), (Scaled(), None, torch.ones(2, 8)),
    (Kernel(), QuantKernel, torch.ones(2, 8))],
    ids=['table', 'one dimension', 'another name'])
def test_whatever_was_registered_is_planned(layer, quantized, x, monkeypatch):
    cls = type(layer)
    monkeypatch.setitem(QUANT_LAYERS, cls, None)  # forgotten at the end
    register_quant_layer(cls, quantized)
    model = nn.Sequential(layer, nn.Identity())
    report = quantize_(model, dict(weight=dict(bits=2)))
    assert [plan.name for plan in report.layers] == ['0']
    assert 'Quant' in str(report) and '100.0% of all layers' in str(report)
    for group in model[0].quantized_weight().split(4):
        assert group.unique().numel() <= 4
    assert model(x).isfinite().all()


def test_old_weight_norm_is_left_with_the_reason():
    plan = plan_of(nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3))))
    assert not plan['0'].quantized
    assert 'computed (weight or spectral norm)' in plan['0'].reason


def test_pattern_that_matches_no_layer_is_refused():
    with pytest.raises(ValueError, match="'bn' matches no layer"):
        plan_of(Block(), dict(**W4A4, rules=[dict(match='bn', skip=True)]))


def test_shared_weight_with_one_scheme_is_planned():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert all(layer.quantized for layer in plan_of(model).values())


@pytest.mark.parametrize('rule', [dict(skip=True), dict(weight=dict(bits=8))])
def test_shared_weight_with_two_schemes_is_refused(rule):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match='0 and 1 share one weight'):
        plan_of(model, dict(**W4A4, rules=[dict(match='1', **rule)]))


def test_scheme_tells_what_a_checkpoint_must_agree_with():
    plan = plan_of(Block(), dict(weight=dict(bits=2, group_size=-1),
                                 activation=dict(bits=4, site='relu')))
    assert plan['conv1'].scheme() == dict(
        weight='ScaleClip 2 bits, group size -1, 4 levels',
        activation='ScaleClip 4 bits, threshold mse, 1 sites')
    assert plan['relu'].scheme() == dict(
        activation='ScaleClip 4 bits, threshold mse, 2 sites')


@pytest.mark.parametrize('weight, text', [
    (dict(bits=4, clip='search'), ', searched clip'),
    (dict(bits=4, projection=False), ', no projection'),
    (dict(bits=1), ', k 2.0'),
    (dict(bits=1, clip='search', projection=False),
     ', searched clip, no projection')])
def test_scheme_tells_how_the_clip_value_came_about(weight, text):
    plan = plan_of(Block(), dict(weight=weight))
    assert plan['conv1'].scheme() == dict(
        weight=f'ScaleClip {weight["bits"]} bits, group size 4{text}')


def test_a_model_whose_part_is_quantized_already_is_an_error():
    import gdrq_mm
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3))
    gdrq_mm.quantize_(model[0], dict(weight=dict(bits=4)))
    with pytest.raises(ValueError, match='0.0 is quantized already'):
        gdrq_mm.quantize_(model, dict(weight=dict(bits=4)))


def test_attention_is_planned_with_its_in_projection():
    plan, out = make_plan(nn.MultiheadAttention(8, 2), QuantConfig.from_dict(
        dict(weight=dict(bits=4), activation=dict(bits=4))))
    assert plan.parameter_name == 'in_proj_weight'
    assert plan.parameter.shape == (24, 8) and plan.sites == 3
    assert out.name == 'out_proj' and out.quantized


def test_a_module_under_two_names_is_planned_once_and_says_so():
    conv = nn.Conv2d(3, 3, 1)
    model = nn.ModuleDict(dict(first=conv, second=conv))
    plans = make_plan(model, QuantConfig.from_dict(dict(weight=dict(bits=4))))
    assert [plan.name for plan in plans] == ['first']
    assert 'is second as well' in plans[0].reason
    with pytest.raises(ValueError, match='second.*same module as first'):
        make_plan(model, QuantConfig.from_dict(
            dict(weight=dict(bits=4), rules=[dict(match='second',
                                                  skip=True)])))


def test_weight_tied_to_a_layer_that_stays_float_names_the_way_out():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), OwnConv(4, 4, 3))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=(
            r"1 has to stay float .*match='0', skip=True\)")):
        plan_of(model)
    rules = [dict(match='0', skip=True), dict(match='1', skip=True)]
    assert not plan_of(model, dict(W4A4, rules=rules))['0'].quantized


@pytest.mark.parametrize('weight, learned', [
    (dict(type='LSQ'), True), (dict(type='DirectQuantization'), True),
    (dict(clip='learned', projection=False), True), (dict(), False),
    (dict(type='DoReFa'), False)])
def test_a_shared_weight_has_no_two_learned_scales(weight, learned):
    """A file stores its codes once."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].weight = model[0].weight
    config = dict(weight=dict(weight, bits=4))
    if not learned:
        assert 'shares its weight with 0' in plan_of(model, config)['1'].reason
        return
    with pytest.raises(ValueError, match=(
            '0 and 1 share one weight, for which .* would learn two scales, '
            ".*match='0', skip=True")):
        plan_of(model, config)


class Tied(nn.Module):
    """The head of a language model reads the table of the embedding."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.table.weight


def test_a_layer_tied_to_a_table_stays_float():
    """Else the table would be clipped, and packed as codes."""
    plan = plan_of(Tied())
    assert plan['fc'].quantized and not plan['head'].quantized
    assert plan['head'].sites == 0 and plan['head'].reason == (
        'default; its weight is table.weight as well, which stays float')


def test_a_layer_whose_weight_has_another_owner_stays_float():
    """Code that reads it there would compute with float values."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model.w, model[1].twin = model[0].weight, model[1].weight
    plan = plan_of(model)
    assert not plan['0'].quantized and plan['0'].reason == (
        'default; its weight is w as well, which stays float')
    assert not plan['1'].quantized and '1.twin' in plan['1'].reason
    assert plan['2'].quantized
    with pytest.raises(ValueError, match='its weight is w as well'):
        plan_of(model, dict(W4A4, rules=[
            dict(match='0', weight=dict(bits=2))]))


def test_a_lazy_module_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match='0 is a LazyLinear .*run the model '
                                         'once'):
        plan_of(nn.Sequential(nn.LazyLinear(3)))


def test_the_site_of_a_rule_is_for_relus():
    with pytest.raises(ValueError, match="rule 'conv1': site='relu' acts on "
                       'ReLUs, and it decides none'):
        plan_of(Block(), dict(RELU_SITE, rules=[
            dict(match='conv1', activation=dict(site='relu', bits=8))]))
