"""Encoders of torch, whose fused operator reads weights past their layers."""
import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import merge
from gdrq_mm.training import get_state
from gdrq_mm.training.state import uncalled_layers

QUANTIZATION = dict(weight=dict(bits=2), activation=dict(bits=2))


def layer_of():
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(16, 2, 32, dropout=0., batch_first=True)


@pytest.mark.parametrize('mask', [False, True])
@pytest.mark.parametrize('quantization', [
    QUANTIZATION, dict(activation=dict(bits=2))])  # float weights as well
def test_encoder_computes_the_quantized_model(quantization, mask):
    model = nn.TransformerEncoder(layer_of(), 2)
    x = torch.randn(3, 5, 16)
    masks = dict(src_key_padding_mask=torch.tensor(
        [[False] * (5 - number) + [True] * number for number in (0, 1, 2)])
    ) if mask else {}
    model.eval()
    with torch.no_grad():
        floats = model(x, **masks)
    gdrq_mm.quantize_(model, quantization)
    gdrq_mm.calibrate(model, [lambda: model(x, **masks)])
    assert not uncalled_layers(get_state(model))
    seen = model.eval()(x, **masks)  # with gradients: no fast path
    with torch.no_grad():
        ours = model(x, **masks)
    for row, number in enumerate((5, 4, 3) if mask else (5, 5, 5)):
        torch.testing.assert_close(ours[row, :number], seen[row, :number])
        assert (ours - floats)[row, :number].abs().max() > .05


@pytest.mark.parametrize('skipped', [
    'layers.0.*', 'layers.1.*', 'layers.0.self_attn*', '*.linear?'])
def test_encoder_with_float_layers_takes_padding(skipped):
    model = nn.TransformerEncoder(layer_of(), 2)
    x = torch.randn(3, 5, 16)
    padding = torch.arange(5) >= torch.tensor([[5], [4], [3]])
    gdrq_mm.quantize_(model, dict(
        QUANTIZATION, rules=[dict(match=skipped, skip=True)]))
    gdrq_mm.calibrate(
        model, [lambda: model(x, src_key_padding_mask=padding)])
    seen = model.eval()(x, src_key_padding_mask=padding)
    with torch.no_grad():
        ours = model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(ours[~padding], seen[~padding])


def test_encoder_whose_layers_are_all_float_stays_as_it_is():
    model = nn.Sequential(nn.TransformerEncoder(layer_of(), 2),
                          nn.Linear(16, 4))
    gdrq_mm.quantize_(model, dict(
        QUANTIZATION, rules=[dict(match='0.*', skip=True)]))
    assert model[0].use_nested_tensor


def test_merged_encoder_layer_equals_the_quantized_one():
    model = nn.Sequential(layer_of()).eval()
    x = torch.randn(3, 5, 16)
    gdrq_mm.quantize_(model, QUANTIZATION)
    gdrq_mm.calibrate(model, [lambda: model(x)])
    with torch.no_grad():
        merged = merge(model, x)
        torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-5)
