"""Plans of products of activations: which modules, which rules."""
import pytest
import torch
from mmdet.models.backbones.swin import WindowMSA as DetWindowMSA
from mmdet.models.detectors.soft_teacher import SoftTeacher
from mmpretrain.models.backbones.levit import Attention as LeViTAttention
from mmpretrain.models.heads.spark_head import SparKPretrainHead
from mmpretrain.models.losses.swav_loss import SwAVLoss
from mmpretrain.models.selfsup.densecl import DenseCL
from mmpretrain.models.selfsup.moco import MoCo
from mmpretrain.models.selfsup.simclr import SimCLR
from mmpretrain.models.utils import BEiTAttention, MultiheadAttention
from mmpretrain.models.utils import WindowMSA as PretrainWindowMSA
from mmseg.models.backbones.beit import BEiTAttention as SegBEiTAttention
from mmseg.models.backbones.swin import WindowMSA as SegWindowMSA
from mmseg.models.decode_heads.ema_head import EMAModule
from mmseg.models.decode_heads.ham_head import NMF2D
from mmseg.models.losses.huasdorff_distance_loss import HuasdorffDisstanceLoss
from torch import nn

import gdrq_mm
from gdrq_mm.analysis.coverage import measure_coverage
from gdrq_mm.config import QuantConfig
from gdrq_mm.layers import count_products, products_of, register_products
from gdrq_mm.plan import QuantReport, make_plan, trace_layers

WINDOW = dict(embed_dims=8, num_heads=2, window_size=(2, 2))
PACKAGES = [
    lambda: MultiheadAttention(8, 2),
    lambda: BEiTAttention(8, 2, (2, 2), True),
    lambda: LeViTAttention(8, 4, 2, 2, resolution=2),
    lambda: PretrainWindowMSA(8, (2, 2), 2),
    lambda: DetWindowMSA(**WINDOW), lambda: SegWindowMSA(**WINDOW),
    lambda: SegBEiTAttention(8, 2, (2, 2)),
    lambda: nn.MultiheadAttention(8, 2)]


class Attention(nn.Module):

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        return (x @ x.mT).softmax(-1) @ x


class Parts(nn.ModuleDict):
    """A model whose parts are read by name."""


def model():
    return Parts(dict(first=Attention(), second=Attention()))


def plans_of(part=None, **config):
    config = {key: value for key, value in config.items()}
    return make_plan(part or model(), QuantConfig.from_dict(config))


@pytest.mark.parametrize('make', PACKAGES)
def test_attention_of_the_packages_has_two_products(make):
    assert count_products(make()) == 2


@pytest.mark.parametrize('layer', [nn.Linear(2, 2), nn.Conv2d(2, 2, 1),
                                   nn.LSTM(2, 2), nn.Sequential()])
def test_layers_that_multiply_by_weights_have_none(layer):
    assert count_products(layer) == 0


def test_a_method_that_another_replaces_does_not_count_unless_it_is_called():

    class Replaced(Attention):
        def forward(self, x):
            return x @ x

    class Extended(Attention):
        def forward(self, x):
            return super().forward(x @ x)

    assert count_products(Replaced()) == 1
    assert count_products(Extended()) == 3


def test_a_registered_class_has_the_products_that_are_said():

    class Elsewhere(nn.Module):
        def forward(self, x):
            return torch.special.expit(x)

    assert count_products(Elsewhere()) == 0
    register_products(Elsewhere, 3)
    plan, = plans_of(nn.Sequential(Elsewhere()), products=dict(bits=8))
    assert (plan.name, plan.sites) == ('0.product_quantizers', 6)


def test_products_are_planned_by_the_rules_of_their_module():
    plans = {plan.module_name: plan for plan in plans_of(
        weight=dict(bits=4), products=dict(bits=8),
        rules=[dict(match='first', products=dict(bits=3))])
        if plan.products}
    assert plans['first'].activation.bits == 3
    assert plans['second'].activation.bits == 8
    assert [plan.scheme() for plan in plans.values()] == [
        dict(activation=f'ScaleClip {bits} bits, threshold mse, 4 sites')
        for bits in (3, 8)]


def test_rules_alone_ask_for_products():
    first, second = [plan for plan in plans_of(
        rules=[dict(match='second', products=dict(bits=4))]) if plan.products]
    assert not first.quantized and first.reason == \
        'products: no bits asked for'
    assert second.quantized and second.reason == "rule 'second'"


def test_a_rule_that_skips_a_module_skips_its_products():
    first, _ = [plan for plan in plans_of(
        products=dict(bits=8), rules=[dict(match='first*', skip=True)])
        if plan.products]
    assert not first.quantized and first.reason == "rule 'first*': skip"


def test_a_config_without_products_plans_none():
    assert not any(plan.products for plan in plans_of(weight=dict(bits=4)))


@pytest.mark.parametrize('rule, reason', [
    (dict(match='first.fc', products=dict(bits=4)),
     r"rule 'first.fc': products={'bits': 4} acts on none of its layers "
     r'\(first.fc: it multiplies no activations\)'),
    (dict(match='first', weight=dict(bits=4)),
     r'first: only its products can be quantized'),
    (dict(match='first', products=dict(k=None)),
     'first: rule .first.: no bits asked for'),
    (dict(match='third', products=dict(bits=4)), 'matches no layer')])
def test_a_rule_that_acts_on_nothing_is_an_error(rule, reason):
    with pytest.raises(ValueError, match=reason):
        plans_of(weight=dict(bits=4), rules=[
            dict(match='second', products=dict(bits=4)), rule])


def test_a_model_that_multiplies_no_activations_is_an_error():
    with pytest.raises(ValueError, match='register_products'):
        plans_of(nn.Sequential(nn.Linear(2, 2)), products=dict(bits=8))


@pytest.mark.parametrize('options', [
    dict(kdim=4, vdim=4), dict(add_bias_kv=True)])
def test_attention_that_torch_alone_can_compute_stays_float(options):
    plan = plans_of(nn.Sequential(nn.MultiheadAttention(8, 2, **options)),
                    products=dict(bits=8))[-1]
    assert plan.products and not plan.quantized
    assert 'keys and values' in plan.reason


def test_the_report_lists_products_and_who_was_called():
    part = model()
    config = QuantConfig.from_dict(dict(products=dict(bits=8)))
    plans = make_plan(part, config)
    traces = trace_layers(part, plans, lambda: part['first'](
        torch.randn(2, 3, 8)))
    rows = {row['layer']: row for row in QuantReport(plans, traces).rows()}
    row = rows['first.product_quantizers']
    assert (row['a bits'], row['thresholds'], row['calls'], row['bytes']) == (
        8, 4, 1, '')
    assert rows['second.product_quantizers']['input'] == 'not called'


def test_the_policy_and_the_measured_share_name_products():
    plans = plans_of(weight=dict(bits=4), products=dict(bits=8), rules=[
        dict(match='first', products=dict(bits=None))])
    report = QuantReport(plans, mac_share=1., between_share=.5)
    assert report.policy().endswith(
        '; products of activations at float: 1 modules; '
        'products of activations at 8: 1 modules')
    assert 'and 100.0% of the MACs and 50.0% of those of activations with ' \
        'activations are quantized' in report.summary()
    without = QuantReport(plans_of(weight=dict(bits=4)), mac_share=1.,
                          between_share=0.)
    assert 'activations' not in without.summary() + without.policy()[25:]


def test_coverage_says_how_many_products_are_low_bit():
    part = model()
    x = torch.randn(2, 3, 8)

    def forward():
        part['first'](x), part['second'](x)

    gdrq_mm.quantize_(part, dict(
        weight=dict(bits=4), activation=dict(bits=4),
        rules=[dict(match='first', products=dict(bits=8))]))
    gdrq_mm.calibrate(part, [forward])
    coverage = measure_coverage(part, forward)
    assert coverage.low_bit_between == coverage.between / 2 == 2 * 144
    assert coverage.summary().endswith(
        ', 50.0% of those of activations with two low-bit operands')


@pytest.mark.parametrize('part', [
    lambda: EMAModule(8, 4, 3, 1.), lambda: NMF2D(dict(MD_R=4)),
    lambda: SwAVLoss(16)])
def test_classes_of_the_packages_that_stay_float_say_why(part):
    plans = plans_of(nn.Sequential(Attention(), part()),
                     products=dict(bits=8))
    plan = next(plan for plan in plans if plan.module_name == '1')
    assert not plan.quantized
    assert plan.reason.startswith(('its loop repeats', 'its products are'))
    with pytest.raises(ValueError, match='acts on none of its layers .*its '):
        plans_of(nn.Sequential(Attention(), part()), products=dict(bits=8),
                 rules=[dict(match='1', products=dict(bits=8))])


def test_what_is_said_of_a_class_counts_before_its_name():

    class Looped(EMAModule):
        pass

    name = f'{Looped.__module__}.{Looped.__qualname__}'
    register_products(name, 0, 'a reason')
    looped = Looped(8, 4, 3, 1.)
    assert products_of(looped) == (0, 'a reason')
    register_products(Looped, 7)
    assert products_of(looped) == (7, '')


@pytest.mark.parametrize('cls', [MoCo, DenseCL, SimCLR, SoftTeacher,
                                 SparKPretrainHead, HuasdorffDisstanceLoss])
def test_losses_and_what_is_no_activation_are_not_counted(cls):
    known = products_of(cls.__new__(cls))
    assert known.number == 0 and known.reason


def test_a_rule_that_leaves_products_float_asks_for_none():
    rules = [dict(match='0', products=dict(bits=None))]
    plan, = plans_of(nn.Sequential(nn.Linear(2, 2)), weight=dict(bits=4),
                     rules=rules)
    assert not plan.products
