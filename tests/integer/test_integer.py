import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import to_integer
from gdrq_mm.integer.graph import LAYERS
from gdrq_mm.integer.moves import clamp_range, target_of
from gdrq_mm.integer.ranges import best_grid
from gdrq_mm.merge import merge
from gdrq_mm.merge.ops import OPS, UINT8_OFFSET


def quantized(model, x, bits=4, activation_bits=4, **options):
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=bits), activation=dict(bits=activation_bits),
        **options))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return model.eval()


class Residual(nn.Module):
    """Two convolutions whose outputs are summed, a shared reader, a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool(self.relu(self.stem(x)))
        y = self.relu(self.norm(self.first(x)))
        x = self.relu(self.second(y) + x)
        return self.head(x.mean((2, 3)))


@pytest.fixture
def residual():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    model = quantized(Residual(), x)
    return x, merge(model, x)


def test_outputs_read_more_than_once_get_8_bits(residual):
    x, merged = residual
    integer = to_integer(merged, x)
    calls = {call.layer: call for call in integer.calls}
    assert calls['stem'].added  # read by a quantizer and by the sum
    assert (calls['stem'].grid.low, calls['stem'].grid.high) == (0, 255)
    assert not calls['first'].added  # its ReLU feeds one quantizer
    assert calls['first'].grid == merged.second.grid
    assert calls['second'].added  # before the sum, signed
    assert (calls['second'].grid.low, calls['second'].grid.high) == (-128, 127)
    assert calls['head'].grid is None
    assert len(integer.sums) == 1


def test_integer_model_is_near_the_merged_one(residual):
    x, merged = residual
    expected = merged(x)
    error = (to_integer(merged, x)(x) - expected).abs().max()
    assert 0 < error < 0.05 * expected.abs().max()


class SharedReader(nn.Module):
    """A convolution that reads a ReLU and a signed tensor."""

    def __init__(self):
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.relu, self.shared = nn.ReLU(), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return (self.shared(self.relu(self.stem(x))),
                self.shared(self.other(x)))


def test_relu_stays_in_front_of_a_signed_quantizer():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    model = quantized(SharedReader(), x)
    assert model.shared.input_quantizer.is_signed
    merged = merge(model, x)
    for ours, expected in zip(to_integer(merged, x)(x), merged(x)):
        error = (ours - expected).abs().max()
        assert error < 0.05 * expected.abs().max()


def test_merged_model_is_left_alone(residual):
    x, merged = residual
    before = {key: value.clone() for key, value in
              merged.state_dict().items()}
    to_integer(merged, x)
    assert all(torch.equal(value, before[key])
               for key, value in merged.state_dict().items())


@settings(max_examples=10, deadline=None, derandomize=True)
@given(bits=st.sampled_from([1, 2, 3, 4, 8]),
       activation_bits=st.sampled_from([2, 4, 8]), signed=st.booleans(),
       channels=st.sampled_from([1, 3, 40]), seed=st.integers(0, 2**16))
def test_layer_equals_arithmetic_in_int64(bits, activation_bits, signed,
                                          channels, seed):
    """Codes of one layer, against sums of Python-like integers."""
    torch.manual_seed(seed)
    x = torch.randn(1, channels, 4, 4)
    x = x if signed else x.abs()
    conv = nn.Conv2d(channels, 6, 3)
    conv.bias.data *= 10
    model = quantized(nn.Sequential(conv), x, bits, activation_bits)
    integer = to_integer(merge(model, x), x)
    node = next(node for node in integer.graph_module.graph.nodes
                if node.target is OPS.integer_conv2d.default)
    call, = integer.calls
    weight = integer.weights['0']
    part = integer.graph_module.get_submodule('0')
    stored = part.weight.long()
    if part.weight.dtype == torch.uint8:
        stored = stored - UINT8_OFFSET
    assert torch.equal(stored, weight.codes.long()
                       * weight.factor.view(-1, 1, 1, 1))
    assert part.bias.dtype == torch.int32
    codes = torch.round(x / node.args[2]).clamp(
        -(2**(activation_bits - 1) - 1) if signed else 0,
        2**(activation_bits - 1) - 1 if signed else 2**activation_bits - 1)
    patches = nn.functional.unfold(codes.double(), 3).long()  # (1, CKK, 4)
    acc = torch.einsum('ok,nkp->nop', stored.flatten(1), patches) \
        + part.bias.long().view(1, -1, 1)
    assert acc.abs().max() < 2**31
    multiplier = node.args[2] * part.w_scale / call.grid.scale
    expected = torch.round(
        acc.float() * multiplier.view(1, -1, 1)).clamp(-128, 127)
    result = integer(x) / call.grid.scale
    assert torch.equal(result.flatten(2).round(), expected)


@pytest.mark.parametrize('bits, activation_bits', [
    (2, 2), (4, 4), (4, 8), (8, 8)])
def test_no_pair_of_products_saturates_int16(bits, activation_bits):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 6, 6)
    model = quantized(nn.Sequential(nn.Conv2d(3, 4, 3)), x, bits,
                      activation_bits)
    integer = to_integer(merge(model, x), x)
    weight = integer.weights['0'].stored
    span = 2 * (2**(activation_bits - 1) - 1)
    if weight.dtype == torch.int8:  # uint8 kernels add in int32
        assert 2 * span * int(weight.abs().max()) < 2**15
    assert (weight.dtype == torch.uint8) == (bits == activation_bits == 8)


def test_huge_bias_neither_overflows_nor_gets_lost():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 6, 6)
    norm = nn.BatchNorm2d(4)
    norm.weight.data = torch.tensor([1e-12, 1e-7, 1e-3, 1.])
    norm.bias.data = torch.tensor([3., -2., 1., 1.])
    model = quantized(nn.Sequential(nn.Conv2d(3, 4, 3), norm), x)
    merged = merge(model, x)
    integer = to_integer(merged, x)
    step = integer.calls[0].grid.scale
    assert (integer(x) - merged(x)).abs().max() <= 0.51 * step


@pytest.mark.parametrize('bits', [2, 4])
def test_the_bias_behind_an_input_of_zeros_is_as_fine_as_any(bits):
    """There is no step of the input that could tell that of the bias."""
    torch.manual_seed(0)
    x, bias = torch.rand(2, 3, 6, 6), torch.tensor([-6e-4, .033, 0., 7.])
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(8 * 4 * 4, 4))
    nn.init.constant_(model[0].bias, -100.)
    model[3].bias.data.copy_(bias)
    merged = merge(quantized(model, x, bits), x)
    found = to_integer(merged, x)(x)
    expected = bias.expand_as(found)
    assert torch.equal(merged(x), expected)
    assert torch.allclose(found, expected, rtol=2e-6, atol=0)


def test_shared_layer_has_one_weight_and_a_grid_a_call():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x), self.conv(x[..., ::2] * 0.1)

    torch.manual_seed(0)
    x = torch.rand(1, 3, 16, 16)
    merged = merge(quantized(Shared(), x), x)
    integer = to_integer(merged, x)
    assert [call.layer for call in integer.calls] == ['conv', 'conv']
    assert integer.calls[0].grid != integer.calls[1].grid
    for ours, theirs in zip(integer(x), merged(x)):
        assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(reader=st.floats(0.05, 0.5), bits=st.integers(2, 4),
       seed=st.integers(0, 2**16))
def test_rounding_to_8_bits_first_changes_no_code(reader, bits, seed):
    torch.manual_seed(seed)
    values = torch.randn(2000).relu()
    reader = float(torch.tensor(reader))
    grid = best_grid(values, (0, 255), reader)
    inside = values[values < 255 * grid.scale]
    direct = torch.round(inside / reader)
    rounded = torch.round(torch.round(inside / grid.scale)
                          * grid.scale / reader)
    ties = ((inside / reader) % 1 - 0.5).abs() < 1e-5
    assert torch.equal(direct[~ties], rounded[~ties])


@pytest.mark.parametrize('reader', [None, 1.])
def test_grid_has_the_least_squared_error(reader):
    values = np.random.default_rng(0).normal(size=3000)
    grid = best_grid(torch.tensor(values, dtype=torch.float32), (-128, 127),
                     reader)

    def error(scale):
        codes = np.clip(np.round(values / scale), -128, 127)
        return np.square(codes * scale - values).sum()

    if reader is None:
        others = np.abs(values).max() / 127 * np.linspace(.3, 1.2, 200)
    else:
        # Odd fractions only; the least error is at the 33rd or so.
        fractions = np.arange(1, 256, 2)
        assert min(abs(reader / grid.scale - fractions)) < 1e-4
        assert grid.scale < reader / 15
        others = reader / fractions
    assert error(grid.scale) <= 1.1 * min(map(error, others))


def test_grid_of_nothing_is_valid():
    assert best_grid(torch.empty(0), (0, 255)).scale == 1


def test_grid_of_a_tensor_of_zeros_is_valid():
    grid = best_grid(torch.zeros(10), (-128, 127))
    assert grid.scale == 1


def test_a_model_that_is_not_merged_is_refused():
    with pytest.raises(ValueError, match='call .*merge first'):
        to_integer(nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8))


class Bounded(nn.Module):
    """A clamp behind a quantizer, in front of another layer."""

    def __init__(self, top):
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 8, 3), nn.ReLU()
        self.second, self.top = nn.Conv2d(8, 4, 1), top

    def forward(self, x):
        return self.second(self.relu(self.first(x)).clamp(0, self.top))


@pytest.mark.parametrize('top, acts', [(.1, True), (50., False)])
def test_a_clamp_of_quantized_values_goes_only_where_it_changes_none(
        top, acts):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = Bounded(top)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4, site='relu')))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    integer = to_integer(merged, x)
    clamps = [node for node in integer.graph_module.graph.nodes
              if clamp_range(node) is not None]
    assert len(clamps) == acts
    torch.testing.assert_close(integer(x), merged(x), rtol=.02, atol=.02)


class Readers(nn.Module):
    """A convolution that is read with its ReLU and without, and a sum that
    one layer alone reads."""

    def __init__(self):
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.mid, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.stem(x)
        return self.head(self.other(y.relu()) + self.mid(y))


@torch.no_grad()
def test_no_layer_is_left_that_computes_in_float():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    merged = merge(quantized(Readers(), x), x)
    integer = to_integer(merged, x)
    assert not any(target_of(node) in LAYERS
                   for node in integer.graph_module.graph.nodes)
    assert not integer.sums  # their reader has a grid
    assert [call.layer for call in integer.calls] == [
        'stem', 'other', 'mid', 'head']
    error = (integer(x) - merged(x)).abs().mean()
    assert error < .05 * merged(x).abs().mean()


@torch.no_grad()
def test_weights_of_float_inputs_are_there_as_codes():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(),
                             nn.Linear(144, 5)), torch.randn(1, 3, 8, 8)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=None)))
    merged = merge(model.eval(), x)
    integer = to_integer(merged, x)
    assert integer.calls == [] and list(integer.weights) == ['0', '2']
    for name, weight in integer.weights.items():
        codes = merged.get_submodule(name).weight
        assert torch.equal(weight.codes, codes) and weight.bits == 4
        assert torch.equal(weight.stored, codes)
        assert torch.equal(weight.factor, torch.ones(
            len(codes), dtype=torch.int32))
    torch.testing.assert_close(integer(x), model(x))


class Sums(nn.Module):
    """Sums of what no ReLU follows, and of which none is negative."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.third = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.first(x).relu()
        y = y + self.second(y).relu().clamp(max=50.)
        return y + self.third(y).relu()


@pytest.mark.parametrize('kind', ['ScaleClip', 'PACT', 'LSQ'])
def test_sums_of_positive_values_keep_the_range_of_8_bit_readers(kind):
    torch.manual_seed(0)
    model, x = Sums(), torch.randn(2, 3, 8, 8)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=8),
                                  activation=dict(type=kind, bits=8)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    integer = to_integer(merged, x)
    assert (integer(x) - merged(x)).abs().max() < .02 * merged(x).abs().max()
    assert all(grid.low == 0 for grid in integer.sums.values())


def wide_linear(features, bias):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(features, 2)), torch.rand(1, features)
    nn.init.constant_(model[0].bias, bias)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=8),
                                  activation=dict(bits=8)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return merge(model.eval(), x), x


def test_wide_layers_are_right_or_refused():
    merged, x = wide_linear(100352, .01)  # 2048 * 7 * 7
    torch.testing.assert_close(to_integer(merged, x)(x), merged(x),
                               rtol=1e-3, atol=1e-3)
    merged, x = wide_linear(300000, .01)
    with pytest.raises(ValueError, match='0 sums 300000 products of 8-bit '
                       r'weights and inputs of 256 codes \(in filter \d up '
                       r'to [\d.e+]+\) and adds a bias of \d.* skip=True'):
        to_integer(merged, x)
