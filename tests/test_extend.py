"""The examples of docs/extend.md, as they stand there."""
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from gdrq_mm import calibrate, quantize_
from gdrq_mm.deploy import export_onnx, merge, pack
from gdrq_mm.layers import MERGED_FORMS, QUANT_LAYERS, QuantConv2d
from gdrq_mm.quantizers import QUANTIZERS

PAGE = Path(__file__).parents[1] / 'docs' / 'extend.md'
CONFIG = dict(weight=dict(type='Static', bits=4, group_size=2),
              activation=dict(bits=4))


BLOCKS = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.S)


def run(blocks, names):
    for source in blocks:
        assert len(source.splitlines()) <= 40
        exec(compile(source, str(PAGE), 'exec'), names)
    return names


@pytest.fixture(autouse=True)
def example(monkeypatch):
    """Run the first code block of the page, and forget it afterwards."""
    monkeypatch.setitem(QUANTIZERS, 'Static', None)  # restored at the end
    run(BLOCKS[:1], {'__name__': 'example'})


@pytest.fixture
def layers():
    """The names that the blocks of layers define."""
    before = dict(QUANT_LAYERS), dict(MERGED_FORMS)
    yield run(BLOCKS[1:4], {'__name__': 'example'})
    for each, old in zip((QUANT_LAYERS, MERGED_FORMS), before):
        each.clear()
        each.update(old)


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
                          nn.Conv2d(5, 4, 3))
    quantize_(model, CONFIG)
    return model


def test_it_trains_reloads_packs_and_merges():
    model, images = make(), torch.rand(2, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), .01)
    before = model[0].weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()
    assert not torch.equal(before, model[0].weight)
    model.eval()
    with torch.no_grad():
        expected = model(images)
        weight = model[0].weight_quantizer(model[0].weight)
        for row in weight.flatten(1):
            assert len(row.unique()) <= 15
        for content in (model.state_dict(), pack(model)):
            other = make()
            other.load_state_dict(content)
            assert torch.equal(other.eval()(images), expected)
        merged = merge(model, images)
        torch.testing.assert_close(merged(images), expected, rtol=1e-4,
                                   atol=1e-5)


def test_it_needs_no_training():
    model, images = make(), torch.rand(2, 3, 8, 8)
    calibrate(model, [lambda: model(images)])
    other = make()
    other.load_state_dict(pack(model))
    assert torch.equal(other.eval()(images), model.eval()(images))


def test_it_has_no_activation_side():
    with pytest.raises(ValueError, match="'Static', which is no activation"):
        quantize_(nn.Linear(2, 2), dict(activation=dict(type='Static',
                                                        bits=4)))


class Net(nn.Module):
    """The layers of the page in one model, in the order of the page."""

    def __init__(self, layers):
        super().__init__()
        self.gated, self.conv, self.masked = (
            layers['Gated'](6, 5), layers['MyConv2d'](3, 4, 3, padding=1),
            layers['Masked'](6, 4))

    def forward(self, x):
        x = self.conv(x).relu()
        mask = (x > .1).float()
        return self.masked(x, mask), self.gated(x, 2.)


def test_layers_train_pack_merge_and_export(layers, tmp_path):
    torch.manual_seed(0)
    model, x = Net(layers), torch.rand(2, 3, 4, 6)
    quantize_(model, dict(weight=dict(bits=4), activation=dict(bits=4)))
    assert isinstance(model.conv, QuantConv2d)
    optimizer = torch.optim.SGD(model.parameters(), .01)
    for _ in range(3):
        optimizer.zero_grad()
        sum(each.square().mean() for each in model(x)).backward()
        optimizer.step()
    model.eval()
    for layer in (model.gated, model.masked):
        assert layer.weight.grad.any() and layer.input_quantizer.initialized
    masked, gated = model(x)
    # Quantized inputs times quantized weights, as the page says.
    inputs = model.conv(x).relu()
    mask = (inputs > .1).float()
    torch.testing.assert_close(gated, 2 * nn.functional.linear(
        model.gated.input_quantizer(inputs),
        model.gated.weight_quantizer(model.gated.weight), model.gated.bias))
    torch.testing.assert_close(masked, nn.functional.linear(
        model.masked.input_quantizer(inputs * mask),
        model.masked.weight_quantizer(model.masked.weight),
        model.masked.bias))
    other = Net(layers)
    quantize_(other, dict(weight=dict(bits=4), activation=dict(bits=4)))
    other.load_state_dict(pack(model))
    for ours, theirs in zip(other.eval()(x), (masked, gated)):
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        for ours, theirs in zip(merge(model, x)(x), (masked, gated)):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        report = export_onnx(model, x, tmp_path / 'net.onnx')
    equal, total = report.equal_codes()
    assert equal == total > 0
