"""Figures of quantized layers and their inputs."""
import torch
from torch import nn

from gdrq_mm import calibrate, quantize_
from gdrq_mm.analysis.layer_figures import MOST_VALUES, InputFigures


def test_some_values_of_large_inputs_say_what_all_do(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 1))
    quantize_(model, dict(weight=dict(bits=4), activation=dict(bits=4)))
    x = torch.randn(1, 4, 512, 1024)
    calibrate(model, [lambda: model(x)])
    seen, quantizer = [], model[0].input_quantizer
    real = type(quantizer).forward
    monkeypatch.setattr(type(quantizer), 'forward', lambda self, x: (
        seen.append(x.numel()), real(self, x))[1])
    some = InputFigures(quantizer)
    some.add(x)
    monkeypatch.setattr('gdrq_mm.analysis.layer_figures.MOST_VALUES',
                        x.numel())
    whole = InputFigures(quantizer)
    whole.add(x)
    assert seen == [-(-x.numel() // 9), x.numel()]
    assert seen[0] <= MOST_VALUES
    ours, theirs = some.figures(), whole.figures()
    assert abs(ours.loss / theirs.loss - 1) < .02
    assert abs(ours.clipped - theirs.clipped) < .002
    assert ours.dead_levels == theirs.dead_levels == 0
