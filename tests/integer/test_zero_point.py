"""Activation quantizers whose code of zero is not 0."""
import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, merge, to_integer
from gdrq_mm.export import onnx_check
from gdrq_mm.merge import merge_errors
from gdrq_mm.quantizers import (
    QUANTIZERS,
    ActivationQuantizer,
    CodeRange,
    QuantizerPair,
)


class Asymmetric(ActivationQuantizer):
    """From the least to the greatest value, in ``2^bits`` steps from 0 on."""

    def __init__(self, bits, headroom=1.):
        super().__init__(bits, headroom)
        self.register_buffer('ends', torch.tensor([-.3, .9]))

    def observe(self, x):
        self.ends = torch.stack(torch.aminmax(x.detach()))

    def code_range(self):
        low, high = self.ends.tolist()
        scale = float(torch.tensor((high - low) / (2**self.bits - 1)))
        return CodeRange(scale, 0, 2**self.bits - 1, round(-low / scale))

    def forward(self, x, rounding=True):
        scale, low, high, zero = self.code_range()
        codes = torch.clamp(torch.round(x / scale) + zero, low, high)
        return (codes - zero) * scale


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(QUANTIZERS, 'Asymmetric', QuantizerPair(
        None, Asymmetric))


class Net(nn.Module):
    """Padding by a convolution, by a module and of codes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm, self.act = nn.BatchNorm2d(8), nn.SiLU()
        self.pad, self.conv = nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(8, 6, 3)
        self.last = nn.Conv2d(6, 6, 3, padding='same')
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.pad(self.act(self.norm(self.stem(x))))
        x = self.last(torch.nn.functional.pad(self.conv(x), (1, 1)))
        return self.head(x.mean((2, 3)))


def quantized(bits, residual=()):
    torch.manual_seed(bits)
    model, x = Net(), torch.randn(2, 3, 9, 8) + .4
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(type='Asymmetric', bits=bits),
        residual=dict(outputs=residual)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return model.eval(), x


@torch.no_grad()
@pytest.mark.parametrize('bits', [2, 4, 8])
def test_merged_layers_pad_with_the_zero_point(bits):
    model, x = quantized(bits)
    merged = merge(model, x)
    assert merged.stem.grid.low < 0 < merged.stem.grid.high
    assert -merged.stem.grid.low not in (merged.stem.grid.high,
                                         merged.stem.grid.high + 1)
    assert max(merge_errors(model, merged, x).values()) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize('bits', [2, 4, 8])
def test_onnx_runtime_has_the_codes_of_the_integer_model(bits, tmp_path):
    model, x = quantized(bits)
    integer = to_integer(merge(model, x), x)
    report = export_onnx(integer, x, tmp_path / 'model.onnx')
    assert list(report.kernels.values()) == ['QLinearConv'] * 3 + ['QGemm']
    assert all(equal == total for equal, total in report.codes.values())
    result, = onnx_check.run(
        onnx_check.session(tmp_path / 'model.onnx'), [x])
    torch.testing.assert_close(torch.from_numpy(result), integer(x),
                               rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('bits', [2, 4, 8])
def test_a_convolution_equals_sums_of_stored_codes_less_the_zero_point(bits):
    """In int64, padded with the zero point."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1)), \
        torch.randn(1, 3, 6, 6) + .4
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(type='Asymmetric', bits=bits)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    scale, low, high, zero = model[0].input_quantizer.code_range()
    stored = (torch.round(x / scale).long() + zero).clamp(low, high)
    stored = nn.functional.pad(stored, (1, 1, 1, 1), value=zero)
    patches = nn.functional.unfold(stored.double(), 3).long() - zero
    merged = merge(model, x)
    layer = merged[0]
    acc = torch.einsum('ok,nkp->nop', layer.weight.long().flatten(1), patches)
    expected = acc * (layer.w_scale * scale).view(1, -1, 1) \
        + layer.bias.view(1, -1, 1)
    torch.testing.assert_close(merged(x).flatten(2), expected, rtol=1e-5,
                               atol=1e-5)


@torch.no_grad()
def test_qonnx_executor_has_the_zero_point_in_its_quant_nodes(tmp_path):
    model, x = quantized(4)
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, x, path, 'qonnx')
    assert len(report.layers) == 4 and report.difference < .05


def test_a_zero_without_a_code_is_refused():
    model, x = quantized(4)
    model.conv.input_quantizer.ends = torch.tensor([.5, .9])
    with pytest.raises(ValueError, match='conv: the zero point .* is -19'):
        merge(model, x)
