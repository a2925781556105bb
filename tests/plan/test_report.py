"""Totals and rows of what was quantized."""
import pytest
import torch
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.plan import QuantReport, trace_layers
from gdrq_mm.training import get_state


def test_macs_of_layers_are_those_of_their_calls():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(4, 2),
                          nn.Linear(2, 1))
    plans = quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4),
        rules=[dict(match='1', activation=dict(bits=None)),
               dict(match='2', weight=dict(bits=None)),
               dict(match='3', skip=True)])).layers
    traces = trace_layers(model, plans, lambda: model(torch.rand(3, 8)))
    assert [traces[name].macs for name in '0123'] == [384, 192, 24, 6]
    report = QuantReport(plans, traces)
    totals = report.totals()
    # Calls of layers are no measure: code may read their weights as well.
    assert 'mac_share' not in totals and 'MACs' not in report.summary()
    assert totals['weight_share'] == pytest.approx(192 / 202)
    report = QuantReport(plans, traces, 384 / 606)
    assert report.totals()['mac_share'] == 384 / 606
    assert '63.4% of the MACs' in report.summary()


def test_what_quantizers_learn_is_told():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    report = quantize_(model, dict(weight=dict(type='LSQ', bits=4)))
    assert len(report.learned_parameters()) == 2
    assert str(report).endswith(
        'quantizers learn 2 parameters, which the optimizer must hold: '
        'GDRQHook sees to it; in plain PyTorch build it after quantize_')
    report = quantize_(nn.Linear(8, 8), dict(weight=dict(bits=4)))
    assert 'learn' not in str(report)


def test_100_percent_is_all_of_it():
    layers = quantize_(nn.Linear(8, 8), dict(weight=dict(bits=4))).layers
    assert 'and 100.0% of the MACs' in QuantReport(
        layers, mac_share=1.).summary()
    assert 'and 99.9% of the MACs' in QuantReport(
        layers, mac_share=.99999).summary()


@pytest.mark.parametrize('inputs, expected', [
    (('unsigned', 'unsigned', 'unsigned'), 'unsigned'),
    (('unsigned', 'signed', 'unsigned'), 'signed'),
    (('signed', 'zero point', 'unsigned'), 'zero point'),
    ((None, 'signed', None), 'signed'), ((None, None, None), 'not seen yet')])
def test_of_several_inputs_the_one_with_most_below_zero_is_told(
        inputs, expected):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    kinds = {'unsigned': values.relu(), 'signed': values,
             'zero point': nn.functional.silu(4 * values)}
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    report = quantize_(model, dict(weight=dict(bits=4),
                                   activation=dict(bits=4)))
    quantizers = [each for _, each in model[0].activation_quantizers()]
    for quantizer, kind in zip(quantizers, inputs, strict=True):
        if kind:
            quantizer.observe(kinds[kind])
            type(quantizer).update_([quantizer])
    plan = next(each for each in report.layers if each.name == '0')
    assert report.input_of(plan) == expected


def test_weights_that_are_read_past_their_layer_are_told():

    class Reads(nn.Module):

        def __init__(self):
            super().__init__()
            self.both, self.one = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return nn.functional.linear(x, self.both.weight) @ \
                self.both.weight + self.one(x)

    model = Reads()
    quantize_(model, dict(weight=dict(bits=4), activation=dict(bits=4)))
    report = QuantReport(get_state(model).plans)
    assert [row['why'] for row in report.rows()] == ['default'] * 2
    model(torch.randn(2, 8))
    assert [row['why'] for row in report.rows()] == [
        'default; other code reads its weight, and its input there is '
        'quantized; other code computes with its weight, on a float operand',
        'default']


def test_share_of_weights_counts_matrices_of_any_name():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 8)  # looked up
            self.lstm = nn.LSTM(8, 4, num_layers=2, bidirectional=True)
            self.gru = nn.GRUCell(8, 4)
            self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6)
            self.own = nn.MultiheadAttention(8, 2)
            self.normed = nn.utils.parametrizations.weight_norm(
                nn.Linear(8, 2))
            self.linear = nn.Linear(8, 8)

    model = Net()
    report = quantize_(model, dict(weight=dict(bits=4)))
    names = [plan.name for plan in report.layers if plan.matrices]
    assert names == ['lstm', 'gru', 'attention', 'attention.out_proj', 'own',
                     'own.out_proj', 'normed', 'linear']
    lstm = 2 * (16 * 8 + 16 * 4) + 2 * (16 * 8 + 16 * 4)
    total = (lstm + 12 * (8 + 4) + (8 * 8 + 2 * 8 * 6) + 64 + 24 * 8 + 64
             + 8 * 2 + 64)
    quantized = [plan for plan in report.layers if plan.weight]
    assert 'linear' in [plan.name for plan in quantized]
    share = sum(plan.parameter.numel() for plan in quantized) / total
    totals = report.totals()
    assert totals['weight_share'] == pytest.approx(share)
    assert totals['bytes_before'] == 4 * total
    assert f"{share:.1%} of all layers' weights" in report.summary()
    assert 'float: 4 layers' in report.policy()
    assert report.rows()[0]['bytes'] == f'{4 * lstm} -> {4 * lstm}'


def test_macs_of_recurrent_layers():
    model = nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 4))
    plans = quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4))).layers
    traces = trace_layers(model, plans, lambda: model(torch.rand(3, 2, 8)))
    assert traces['1'].macs == 3 * 2 * 16 * (8 + 4)


@pytest.mark.parametrize('quantized', [True, False])
def test_macs_of_the_projections_of_attention(quantized):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, x):
            return self.attention(x[:2], key=x, value=x)[0]

    model = Net()
    plans = quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4), rules=[] if quantized
        else [dict(match='attention.out_proj', weight=dict(bits=8)),
              dict(match='attention', skip=True)])).layers
    traces = trace_layers(model, plans, lambda: model(torch.rand(5, 3, 8)))
    assert traces['attention'].macs == (2 + 5 + 5) * 3 * 64
    assert traces['attention.out_proj'].macs == 2 * 3 * 64


def test_a_parameter_of_no_layer_is_not_among_the_weights():
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)
            self.projection = nn.Parameter(torch.randn(8, 400))

        def forward(self, x):
            return self.fc(x) @ self.projection

    report = quantize_(Projected(), dict(weight=dict(bits=4)))
    assert report.summary().startswith(
        "1 of 1 layers with 100.0% of all layers' weights are quantized")


def test_a_weight_that_layers_share_counts_once():
    model = nn.Sequential(nn.Linear(16, 16, bias=False),
                          nn.Linear(16, 16, bias=False))
    model[1].weight = model[0].weight
    totals = quantize_(model, dict(weight=dict(bits=4, group_size=-1))
                       ).totals()
    assert totals['layers'] == totals['quantized_layers'] == 2
    assert totals['bytes_before'] == 4 * 256
    assert totals['bytes_after'] == 256 // 2 + 4


def test_layers_that_went_away_are_told():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    report = quantize_(model, dict(weight=dict(bits=4)))
    assert report.lost() == [] and 'no longer' not in str(report)
    model[2] = nn.Linear(8, 8)
    assert report.lost() == ['2']
    totals = report.totals()
    assert totals['quantized_layers'] == 1 and totals['weight_share'] == .5
    assert report.summary().startswith('1 of 2 layers with 50.0% of all')
    assert report.summary().endswith('; no longer in the model: 2')
