"""What takes the place of quantized layers of every type."""
import types

import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, float_layers, merge, to_integer
from gdrq_mm.export import onnx_check, qonnx_check
from gdrq_mm.export.speed import float_form, speed_against_float
from gdrq_mm.layers import (
    MERGED_FORMS,
    QUANT_LAYERS,
    QuantLayer,
    register_quant_layer,
)
from gdrq_mm.merge import WeightOnly, is_merged


class Upsample(nn.ConvTranspose2d):
    """A layer type of a user's."""


class QuantUpsample(QuantLayer, nn.ConvTranspose2d):
    def forward(self, x):
        return nn.functional.conv_transpose2d(
            self.quantized_input(x), self.quantized_weight(), self.bias)


def test_types_without_an_integer_form_compute_in_float(monkeypatch):
    for registry in (QUANT_LAYERS, MERGED_FORMS):  # restored at the end
        for cls in (Upsample, QuantUpsample):
            monkeypatch.setitem(registry, cls, None)
            monkeypatch.delitem(registry, cls)
    register_quant_layer(Upsample, QuantUpsample)
    torch.manual_seed(0)
    model, x = nn.Sequential(Upsample(3, 4, 3)), torch.randn(1, 3, 5, 5)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    assert float_layers(merged) == {'0': 'no integer kernel for Upsample'}
    assert merged[0][0].weight.dtype == torch.int8
    torch.testing.assert_close(merged(x), model(x))
    floats = float_form(merged)
    # No file of floats has an operator for codes.
    assert not any(isinstance(each, WeightOnly) for each in floats.modules())
    torch.testing.assert_close(
        floats(x), nn.functional.conv_transpose2d(
            x, model[0].quantized_weight(), model[0].bias))
    assert float_layers(merged)  # the copy was changed


class ReadsPast(nn.Module):
    """As BEiT does, beside a layer that is called."""

    def __init__(self):
        super().__init__()
        self.first, self.qkv = nn.Linear(6, 6), nn.Linear(6, 8, bias=False)

    def forward(self, x):
        return nn.functional.linear(self.first(x), self.qkv.weight)


def test_a_layer_whose_weight_is_read_computes_in_float(tmp_path):
    torch.manual_seed(0)
    model, x = ReadsPast(), torch.randn(2, 3, 6)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    with torch.no_grad():
        merged = merge(model.eval(), x)
        assert float_layers(merged) == {'qkv': 'other code reads its weight'}
        torch.testing.assert_close(merged(x), model(x), rtol=1e-5, atol=1e-5)
        export_onnx(model, x, tmp_path / 'm.onnx', 'qonnx',
                    output_names=['y'])
        y = qonnx_check.run_qonnx(tmp_path / 'm.onnx', [x])['y']
    torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-4,
                               atol=1e-4)


class AsksForDtype(nn.Module):
    """As CLIP does: images are made what the first weight is."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.last(self.first(x.to(self.first.weight.dtype) / 255))


def test_a_layer_that_is_asked_for_its_dtype_has_the_float_one(tmp_path):
    torch.manual_seed(0)
    model = AsksForDtype()
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    with torch.no_grad():
        merged = merge(model.eval(), x)
        assert float_layers(merged) == {'first': 'other code reads its weight'}
        torch.testing.assert_close(merged(x), model(x), rtol=1e-5, atol=1e-5)
        export_onnx(model, x, tmp_path / 'm.onnx')
        y, = onnx_check.run(onnx_check.session(tmp_path / 'm.onnx'), [x])
    torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=.02,
                               atol=.02)


class Attention(nn.Module):

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x)[0]


@torch.no_grad()
def test_a_part_of_a_model_that_trains_is_merged():
    """The quantizers' state is no part of it, so that eval() passes by."""
    model, x = Attention(nn.MultiheadAttention(8, 2)), torch.randn(3, 2, 8)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    part = Attention(model.train().attention).eval()
    merged = merge(part, x)
    torch.testing.assert_close(merged(x), model.eval()(x))


@torch.no_grad()
def test_a_merged_model_with_layers_that_stay_is_merged_once(tmp_path):
    model = Attention(nn.MultiheadAttention(8, 2))
    x = torch.randn(3, 2, 8)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    with pytest.raises(ValueError, match='the model is merged already'):
        merge(merged, x)
    for format in ('qdq', 'qonnx'):
        report = export_onnx(merged, x, tmp_path / f'{format}.onnx', format)
        assert report.difference < 1e-5
    figures = speed_against_float(merged, tmp_path / 'qdq.onnx', x, rounds=1)
    assert figures['float_ms'] > 0
    assert is_merged(merged) and float_layers(merged)  # the copy was changed


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
        figures = speed_against_float(merged, path, x, rounds=0)
        assert 4 * floats < figures['float_size'] < 5 * floats
        torch.testing.assert_close(float_form(merged)(x), model(x))
    else:
        assert report.quant_nodes == 3
        y = qonnx_check.run_qonnx(path, [x])['y']
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
    assert {each.dtype for each in (*merged.parameters(), *merged.buffers())
            } == {torch.float32, torch.int8}
    torch.testing.assert_close(merged(x), model(x.to(dtype)).float(),
                               rtol=.2, atol=.2)


@torch.no_grad()
@pytest.mark.parametrize('built_inside', [False, True])
def test_inference_mode_is_left(built_inside, tmp_path):

    class Doubled(nn.Sequential):
        writes = True  # to its input, which no file does

        def forward(self, x):
            return super().forward(x.mul_(2) if self.writes else 2 * x)

    torch.manual_seed(0)
    with torch.inference_mode(built_inside):
        model, x = Doubled(nn.Conv2d(3, 8, 3)), torch.randn(1, 3, 6, 6)
        gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                      activation=dict(bits=4)))
        gdrq_mm.calibrate(model, [lambda: model(x.clone())])
        expected = model.eval()(x.clone())
    with torch.inference_mode():
        merged = merge(model, x.clone())
        merged.writes = False
        integer = to_integer(merged, x.clone(), [torch.randn(1, 3, 6, 6)])
        export_onnx(merged, x.clone(), tmp_path / 'model.onnx')
    torch.testing.assert_close(merged(x.clone()), expected)
    assert not any(value.is_inference() for each in (merged, integer)
                   for value in each.state_dict().values())


class Squared(nn.Linear):
    """A layer that multiplies activations as well."""

    def forward(self, x):
        x = nn.functional.linear(x, self.weight, self.bias)
        return x @ x.mT


class QuantSquared(QuantLayer, Squared):
    def forward(self, x):
        return super().forward(self.quantized_input(x))


def _doubled(layer, x):
    return 2 * type(layer).forward(layer, x)


@pytest.mark.parametrize('weight', [dict(bits=4), dict(bits=None)])
def test_a_forward_that_an_instance_had_before_stays(weight, monkeypatch):
    for registry in (QUANT_LAYERS, MERGED_FORMS):  # restored at the end
        for cls in (Squared, QuantSquared):
            monkeypatch.setitem(registry, cls, None)
            monkeypatch.delitem(registry, cls)
    register_quant_layer(Squared, QuantSquared)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), Squared(4, 4)), \
        torch.randn(2, 3, 4)
    model[1].forward = types.MethodType(_doubled, model[1])
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4), products=dict(bits=4),
        rules=[dict(match='1', weight=weight)]))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    assert not any(isinstance(part, QuantLayer) for part in merged.modules())
    torch.testing.assert_close(merged(x), model(x), atol=1e-5, rtol=1e-5)
