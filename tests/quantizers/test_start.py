"""What a quantizer of a user's own holds before anything was trained."""
from dataclasses import dataclass

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gdrq_mm import functional as F
from gdrq_mm import quantize_
from gdrq_mm.checkpoint import CheckpointError, pack
from gdrq_mm.quantizers import (
    QUANTIZERS,
    ActivationQuantizer,
    QuantizerPair,
    WeightQuantizer,
    WeightScheme,
)
from gdrq_mm.quantizers.start import has_moved, remember_start, start_of


class Gain(WeightQuantizer):
    """A learned gain that starts at 1, a table, an exponent, a dict."""

    def __init__(self, num_filters, bits, group_size):
        super().__init__(num_filters, bits, group_size)
        self.gain = nn.Parameter(torch.ones(F.num_groups(num_filters,
                                                         group_size)))
        self.register_buffer('table', torch.linspace(-1, 1, 2**bits))
        self.register_buffer('shift', torch.tensor(-3))

    def get_extra_state(self):
        return dict(version=1)

    def set_extra_state(self, state):
        assert state == dict(version=1)

    def forward(self, weight, rounding=True):
        top = self.gain * F.clip_threshold(weight, 3., self.group_size)
        return F.linear_quantize(weight, F.expand_clip(
            top, weight, self.group_size), self.bits) if rounding else weight


class Fixed(ActivationQuantizer):
    """A range that is known: no state at all."""

    def forward(self, x, rounding=True):
        return F.linear_quantize(x, torch.tensor(4.), self.bits) \
            if rounding else x


class MinMax(ActivationQuantizer):
    """A running maximum, beside a constant, and a least value of none."""

    def __init__(self, bits, headroom=1.):
        super().__init__(bits, headroom)
        self.register_buffer('top', torch.zeros(()))
        self.register_buffer('momentum', torch.tensor(.1))
        self.register_buffer('least', torch.tensor(float('inf')))

    @property
    def initialized(self):
        return bool(self.top > 0)

    def observe(self, x):
        new = x.detach().abs().max()
        self.top.copy_(torch.where(self.top > 0, torch.lerp(
            self.top, new, self.momentum), new))

    def forward(self, x, rounding=True):
        return F.linear_quantize(x, self.top, self.bits) \
            if rounding and self.initialized else x


@dataclass(frozen=True)
class RatioScheme(WeightScheme):
    ratio: float = 1.
    ends: tuple = (0, 1)


class Ratio(Gain):
    Scheme = RatioScheme

    def __init__(self, num_filters, bits, group_size, ratio, ends):
        super().__init__(num_filters, bits, group_size)
        self.ratio = ratio


@pytest.fixture(autouse=True)
def types(monkeypatch):
    for name, pair in dict(
            Gain=(Gain, None), Ratio=(Ratio, None), Fixed=(None, Fixed),
            MinMax=(None, MinMax)).items():
        monkeypatch.setitem(QUANTIZERS, name, QuantizerPair(*pair))


def make(seed=0, **config):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    weights = {key: value.clone() for key, value in
               model.state_dict().items()}
    quantize_(model, config)
    return model, weights


GAIN = dict(weight=dict(type='Gain', bits=4))
MINMAX = dict(activation=dict(type='MinMax', bits=4))


def test_float_weights_leave_what_a_quantizer_was_built_with():
    model, weights = make(**GAIN)
    x = torch.randn(2, 8)
    expected = model(x)
    model[0].weight_quantizer.gain.data.mul_(3)
    model.load_state_dict(weights, strict=False)
    assert torch.equal(model(x), expected)
    assert model[0].weight_quantizer.gain.tolist() == [1, 1]
    assert int(model[0].weight_quantizer.shift) == -3


def test_a_new_head_gets_what_its_quantizer_was_built_with():
    model, _ = make(**GAIN)
    other = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6))
    quantize_(other, GAIN)
    entries = {key: value for key, value in model.state_dict().items()
               if key not in ('2.weight', '2.bias')}
    entries.update({'2.weight': torch.zeros(3, 8), '2.bias': torch.zeros(3)})
    load_state_dict(other, entries)
    assert other[2].weight_quantizer.gain.tolist() == [1, 1]


@pytest.mark.parametrize('config', [GAIN, MINMAX,
                                    dict(activation=dict(type='Fixed',
                                                         bits=4))])
def test_a_model_loads_its_own_state(config):
    model, _ = make(**config)
    model(torch.randn(3, 8)).sum().backward()
    other, _ = make(1, **config)
    other.load_state_dict(model.state_dict())
    x = torch.randn(3, 8)
    assert torch.equal(model.eval()(x), other.eval()(x))


def test_what_began_finite_must_be():
    model, _ = make(**MINMAX)
    entries = model.state_dict()
    entries['0.input_quantizer.top'] = torch.tensor(float('inf'))
    with pytest.raises(CheckpointError, match='input_quantizer.top has 1 NaN'):
        model.load_state_dict(entries)


@pytest.mark.parametrize('kind', ['Fixed', 'MinMax'])
def test_averages_get_ranges_of_any_type(kind):
    model, _ = make(weight=dict(bits=4), activation=dict(type=kind, bits=4))
    average = AveragedModel(model, use_buffers=True,
                            multi_avg_fn=get_ema_multi_avg_fn(.999))
    average.update_parameters(model)
    optimizer = torch.optim.SGD(model.parameters(), .01)
    for _ in range(3):
        model(torch.randn(16, 8)).square().sum().backward()
        optimizer.step()
        average.update_parameters(model)
    ours, theirs = (each.state_dict() for each in (
        model[0].input_quantizer, average.module[0].input_quantizer))
    for key, value in ours.items():
        if key == 'least':  # an average of infinity is none
            continue
        torch.testing.assert_close(theirs[key], value, rtol=.1, atol=0)


def test_options_of_a_type_are_a_part_of_its_scheme():
    model, _ = make(weight=dict(type='Ratio', bits=4, ratio=.5, ends=[0, 1]))
    other, _ = make(weight=dict(type='Ratio', bits=4, ratio=2.))
    with pytest.raises(CheckpointError, match=(
            r'0: checkpoint .*ratio 0.5, ends \[0, 1\].*'
            r'config .*ratio 2.0, ends \[0, 1\]')):
        other.load_state_dict(model.state_dict())
    same, _ = make(weight=dict(type='Ratio', bits=4, ratio=.5))
    same.load_state_dict(model.state_dict())


def test_a_start_is_kept_in_the_dtype_and_place_of_today():
    quantizer = Gain(8, 4, 4)
    remember_start(quantizer)
    assert not has_moved(quantizer)
    quantizer.double()
    start = start_of(quantizer)
    assert set(start) == {'gain', 'table', 'shift'}
    assert start['gain'].dtype == torch.float64
    start['gain'].zero_()  # a copy
    assert not has_moved(quantizer)
    quantizer.gain.data[0] = 2
    assert has_moved(quantizer)


class Unsigned(WeightQuantizer):
    """Codes from 0 on, of which it tells where it is told to."""

    def forward(self, weight, rounding=True):
        codes, step = self.codes(weight)
        return codes * step if rounding else weight

    def codes(self, weight):
        step = weight.new_full((len(weight), 1), 1 / 2**self.bits)
        return (weight.detach() / step).round().clamp(
            0, 2**self.bits - 1), step

    def decode(self, codes, entries):
        return codes / 2**self.bits


class Told(Unsigned):
    lowest_code = 0


class Halves(Told):

    def codes(self, weight):
        codes, step = super().codes(weight)
        return codes / 2, step


@pytest.mark.parametrize('kind, found', [
    (Unsigned, r'codes from \d+ to 1\d; its Unsigned says that they are -8, '
     '-7 .. 7 at 4 bits: correct its lowest_code or code_step'),
    (Halves, 'its Halves says'), (Told, '')])
def test_codes_that_a_quantizer_does_not_tell_of_are_not_packed(
        kind, found, monkeypatch):
    monkeypatch.setitem(QUANTIZERS, 'Codes', QuantizerPair(kind, None))
    model = nn.Sequential(nn.Linear(8, 4))
    model[0].weight.data.uniform_(0, 1)
    quantize_(model, dict(weight=dict(type='Codes', bits=4)))
    if found:
        with pytest.raises(ValueError, match='0 has weight ' + found
                           if kind is Unsigned else found):
            pack(model)
        return
    other = nn.Sequential(nn.Linear(8, 4))
    quantize_(other, dict(weight=dict(type='Codes', bits=4)))
    other.load_state_dict(pack(model))
    x = torch.randn(2, 8)
    assert torch.equal(other(x), model(x))


def test_codes_that_8_bits_do_not_hold_are_not_merged(monkeypatch):
    from gdrq_mm.deploy import merge
    monkeypatch.setitem(QUANTIZERS, 'Codes', QuantizerPair(Told, None))
    model = nn.Sequential(nn.Linear(8, 4))
    model[0].weight.data.uniform_(.8, 1)
    for activation in ({}, dict(bits=4)):
        copied = nn.Sequential(nn.Linear(8, 4))
        copied.load_state_dict(model.state_dict())
        quantize_(copied, dict(weight=dict(type='Codes', bits=8),
                               activation=activation))
        copied(torch.randn(2, 8)).sum().backward()
        torch.optim.SGD(copied.parameters(), 0.).step()
        with pytest.raises(ValueError, match=(
                r'0 has weight codes from 2\d\d to 2\d\d, and integer kernels '
                'of 8 bits hold -128 to 127: train it with fewer bits')):
            merge(copied.eval(), torch.randn(2, 8))


class Picky(WeightQuantizer):

    def __init__(self, num_filters, bits, group_size):
        super().__init__(num_filters, bits, group_size)
        if num_filters % 8:
            raise ValueError(f'{num_filters} filters are no multiple of 8')


def test_a_quantizer_that_is_not_built_leaves_the_model_as_it_is(monkeypatch):
    monkeypatch.setitem(QUANTIZERS, 'Picky', QuantizerPair(Picky, None))
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(ValueError, match='4 filters are no multiple of 8'):
        quantize_(model, dict(weight=dict(type='Picky', bits=4)))
    assert [type(each) for each in model] == [nn.Linear, nn.ReLU, nn.Linear]
    quantize_(model, dict(weight=dict(bits=4)))
