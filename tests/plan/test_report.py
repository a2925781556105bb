"""Totals and rows of what was quantized."""
import pytest
import torch
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.plan import QuantReport, trace_layers


def test_share_of_macs_counts_layers_with_both_operands_quantized():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(4, 2),
                          nn.Linear(2, 1))
    plans = quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4),
        rules=[dict(match='1', activation=dict(bits=None)),
               dict(match='2', weight=dict(bits=None)),
               dict(match='3', skip=True)])).layers
    traces = trace_layers(model, plans, lambda: model(torch.rand(3, 8)))
    report = QuantReport(plans, traces)
    assert [traces[name].macs for name in '0123'] == [384, 192, 24, 6]
    totals = report.totals()
    assert totals['mac_share'] == pytest.approx(384 / 606)
    assert totals['weight_share'] == pytest.approx(192 / 202)
    assert '63.4% of the MACs' in report.summary()
