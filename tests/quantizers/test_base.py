"""What a quantizer is that says nothing of itself."""
import torch
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.quantizers import (
    QUANTIZERS,
    ActivationQuantizer,
    ActivationScheme,
    QuantizerPair,
)


class Halves(ActivationQuantizer):
    """Rounds to multiples of a half."""

    def forward(self, x, rounding=True):
        return (2 * x).round() / 2 if rounding else x


def test_it_has_its_range_from_the_first_input_on(monkeypatch):
    monkeypatch.setitem(QUANTIZERS, 'Halves', QuantizerPair(None, Halves))
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    x = torch.randn(3, 4)
    expected = nn.functional.linear((2 * x).round() / 2, model[0].weight,
                                    model[0].bias)
    quantize_(model, dict(activation=dict(type='Halves', bits=4)))
    assert torch.equal(model(x), expected)
    quantizer = Halves.build(ActivationScheme(bits=4))
    assert quantizer.initialized
    assert quantizer.settled and not quantizer.is_signed
