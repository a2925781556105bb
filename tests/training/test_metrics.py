"""What the log shows of a quantized model."""
import torch
from torch import nn

from gdrq_mm import calibrate, quantize_
from gdrq_mm.training import get_state, hints


def test_hints_name_the_activations_that_they_are_for():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    quantize_(model, dict(weight=dict(bits=4), activation=dict(bits=4)))
    state = get_state(model)
    assert hints(state) == []  # nothing was seen yet
    calibrate(model, [lambda: model(torch.randn(4, 3, 16, 16))])
    hint, = hints(state)
    assert hint.startswith('1 of 3 quantized activations (3.input_quantizer):')
