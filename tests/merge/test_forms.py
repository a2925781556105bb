"""What takes the place of quantized layers of every type."""
import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, float_layers, merge
from gdrq_mm.export import onnx_check
from gdrq_mm.layers import QUANT_LAYERS, QuantLayer
from gdrq_mm.merge import WeightOnly, forms


class Upsample(nn.ConvTranspose2d):
    """A layer type of a user's."""


class QuantUpsample(QuantLayer, nn.ConvTranspose2d):
    def forward(self, x):
        return nn.functional.conv_transpose2d(
            self.quantized_input(x), self.quantized_weight(), self.bias)


@pytest.fixture
def upsampling(monkeypatch):
    monkeypatch.setitem(QUANT_LAYERS, Upsample, QuantUpsample)
    torch.manual_seed(0)
    model, x = nn.Sequential(Upsample(3, 4, 3)), torch.randn(1, 3, 5, 5)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return model.eval(), x


def test_types_that_nobody_said_how_to_merge_are_refused(upsampling):
    with pytest.raises(ValueError, match='^0 is a QuantUpsample.*skip=True'):
        merge(*upsampling)


def test_types_without_an_integer_form_compute_in_float(
        upsampling, monkeypatch):
    monkeypatch.setitem(forms.MERGED_FORMS, QuantUpsample, forms.MergedForm(
        nn.ConvTranspose2d, None))
    model, x = upsampling
    merged = merge(model, x)
    assert float_layers(merged) == {
        '0.0': 'no integer kernel for ConvTranspose2d'}
    assert merged[0][0].weight.dtype == torch.int8
    torch.testing.assert_close(merged(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize('format, weights', [
    ('qdq', 'int4'), ('qonnx', 'int8')])
def test_models_with_quantized_weights_alone_are_exported(
        format, weights, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(256, 5))
    x = torch.randn(1, 3, 6, 6)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=None)))
    model.eval()
    merged = merge(model, x)
    assert all(isinstance(merged[index], WeightOnly) for index in (0, 3, 5))
    torch.testing.assert_close(merged(x), model(x))
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, x, path, format, weights=weights,
                         output_names=['y'])
    assert set(report.float_layers.values()) == {'its input is float'}
    if format == 'qdq':
        floats = sum(each.numel() for each in model.parameters())
        assert report.size < floats  # int4, and the graph
        y, = onnx_check.run(onnx_check.session(path), [x])
    else:
        assert report.quant_nodes == 3
        y = onnx_check.run_qonnx(path, [x])['y']
    torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-4,
                               atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_models_of_other_dtypes_become_float32(dtype):
    torch.manual_seed(0)
    model, x = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)), torch.randn(1, 3, 5, 5)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4),
        rules=[dict(match='0', skip=True)]))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    model.eval().to(dtype)
    merged = merge(model, x.to(dtype))
    assert {each.dtype for each in merged.state_dict().values()} == {
        torch.float32, torch.int8}
    torch.testing.assert_close(merged(x), model(x.to(dtype)).float(),
                               rtol=.2, atol=.2)
