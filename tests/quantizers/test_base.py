"""What a quantizer is that says nothing of itself."""
from dataclasses import dataclass

import torch
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.quantizers import (
    QUANTIZERS,
    ActivationQuantizer,
    ActivationScheme,
    QuantizerPair,
    ScaleClipActivation,
    ScaleClipWeight,
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


def test_statistics_are_taken_at_once_where_no_kernel_takes_them():
    seen = []

    class Sees(Halves):

        def observe(self, x):
            seen.append(x)

    x = torch.randn(3)
    assert Sees(4).observe_later(x) is None
    assert seen == [x]


def test_parts_that_are_no_learned_values_have_nothing_to_forget():
    quantizer = Halves(4)
    quantizer.part = nn.Identity()
    quantizer.forget()


@dataclass(frozen=True)
class PartsScheme(ActivationScheme):
    """Into how many parts one is divided."""
    parts: int = 2


class Parts(ActivationQuantizer):
    """Rounds to multiples of a part of one."""
    Scheme = PartsScheme

    def __init__(self, bits, headroom=1., parts=2):
        super().__init__(bits, headroom)
        self.parts = parts

    def forward(self, x, rounding=True):
        return (self.parts * x).round() / self.parts if rounding else x


def test_fields_of_its_scheme_reach_the_quantizer(monkeypatch):
    monkeypatch.setitem(QUANTIZERS, 'Parts', QuantizerPair(None, Parts))
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    quantize_(model, dict(activation=dict(type='Parts', bits=4, parts=5)))
    quantizer = model[0].input_quantizer
    assert quantizer.parts == 5 and quantizer.bits == 4
    x = torch.randn(3, 4)
    torch.testing.assert_close(quantizer(x), (5 * x).round() / 5)


class Own(ScaleClipWeight):
    """Rounds as it likes."""

    def forward(self, weight, rounding=True):
        return 2 * weight


class OwnActivation(ScaleClipActivation):
    """The same."""

    def forward(self, x, rounding=True):
        return 3 * x


class Named(Own):
    """A class between that says nothing of its own."""


class OwnGrid(ScaleClipWeight):
    """What forward and kernels compute goes together."""

    def forward(self, weight, rounding=True):
        return super().forward(weight, rounding)

    def grid(self, weight):
        return super().grid(weight)


def test_a_forward_of_ones_own_is_what_runs(monkeypatch):
    """In training and in evaluation, though the class that it derives from
    lets kernels run."""
    monkeypatch.setitem(QUANTIZERS, 'Own', QuantizerPair(Named, OwnActivation))
    model = nn.Sequential(nn.Linear(4, 4, bias=False)).double()
    x = torch.randn(3, 4).double()
    expected = 6 * model(x).detach()
    quantize_(model, dict(weight=dict(type='Own', bits=4), activation=dict(
        type='Own', bits=4, threshold='nonzero')))
    for train in (True, False):
        model.train(train)
        torch.testing.assert_close(model.float()(x.float()),
                                   expected.float())
    assert ScaleClipWeight.fused and OwnGrid.fused
    assert not (Own.fused or Named.fused or OwnActivation.fused)
