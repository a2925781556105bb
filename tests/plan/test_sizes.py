"""What a plan says of bytes is what a packed file has."""
import pytest
import torch
from torch import nn

from gdrq_mm import calibrate, quantize_
from gdrq_mm.deploy import pack
from gdrq_mm.plan import QuantReport

SCHEMES = [dict(bits=bits) for bits in (1, 2, 3, 4, 8)] + [
    dict(bits=2, group_size=1), dict(bits=4, group_size=-1),
    dict(bits=4, clip='learned')] + [
        dict(type=name, bits=4, group_size=size)
        for name in ('LSQ', 'LSQPlus', 'PACT', 'DoReFa', 'DirectQuantization')
        for size in (-1, 4)] + [dict(type='DirectQuantization', bits=8)]


@pytest.mark.parametrize('weight', SCHEMES, ids=str)
@pytest.mark.parametrize('layer', [
    lambda: nn.Conv2d(16, 16, 3, groups=16),  # 9 codes a filter
    lambda: nn.Conv2d(3, 10, 1), lambda: nn.Conv2d(8, 6, 3)],
    ids=['depthwise', 'narrow', 'short last group'])
def test_bytes_are_those_of_a_packed_file(layer, weight):
    torch.manual_seed(0)
    model = nn.Sequential(layer())
    report = quantize_(model, dict(weight=weight))
    x = torch.randn(1, model[0].in_channels, 4, 4)
    model(x)
    calibrate(model, [lambda: model(x)])
    packed = pack(model)
    stored = sum(value.numel() * value.element_size()
                 for key, value in packed.items()
                 if 'weight_packed' in key or 'weight_quantizer' in key)
    assert report.bytes_of(report.layers[0]) == (
        4 * model[0].weight.numel(), stored)


@pytest.mark.parametrize('kind, told', [
    ('DirectQuantization', ' of the MACs (levels of DirectQuantization are '
     'not evenly spaced, and count as float there) are quantized'),
    ('LSQ', ' of the MACs are quantized')])
def test_levels_that_no_integer_kernel_knows_are_told(kind, told):
    model = nn.Sequential(nn.Linear(8, 8))
    report = quantize_(model, dict(weight=dict(type=kind, bits=4)))
    assert f'0.0%{told}' in QuantReport(report.layers, mac_share=0.).summary()
