"""Figures of quantized layers and their inputs."""
import pytest
import torch
from torch import nn

from gdrq_mm import calibrate, quantize_
from gdrq_mm.analysis.layer_figures import (
    MOST_VALUES,
    InputFigures,
    weight_figures,
)


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


@pytest.mark.parametrize('scheme, low, high, step', [
    (dict(type='LSQ', bits=2), -2, 1, 1), (dict(type='LSQ', bits=4), -8, 7, 1),
    (dict(type='DoReFa', bits=3), -7, 7, 2), (dict(bits=2), -3, 3, 2),
    (dict(bits=2, levels='odd'), -1, 1, 1), (dict(bits=1), -1, 1, 2)])
def test_levels_of_weights_are_those_of_their_type(scheme, low, high, step):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16))
    nn.init.normal_(model[0].weight)
    quantize_(model, dict(weight=scheme))
    model(torch.randn(2, 64))  # a step size starts
    model.eval()
    quantizer, weight = model[0].weight_quantizer, model[0].latent_weight
    codes, scale = quantizer.codes(weight)
    found = weight_figures('0', model[0]).weight
    assert len(found.levels) == (high - low) // step + 1
    top = max(-low, high)
    assert found.levels == pytest.approx([code / top for code in range(
        low, high + 1, step)])
    assert found.dead_levels == len(found.levels) - codes.unique().numel()
    ratio = weight / scale
    beyond = (ratio > high + step / 2) | (ratio < low - step / 2)
    assert found.clipped == pytest.approx(float(beyond.float().mean()),
                                          abs=1e-6)
