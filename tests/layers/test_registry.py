"""Layers beyond nn.Conv2d and nn.Linear, mmcv's and users' own."""
import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from mmcv.cnn.bricks.conv_ws import ConvAWS2d, ConvWS2d
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from mmengine.model import BaseModule
from torch import nn

import gdrq_mm
from gdrq_mm.checkpoint import float_weights, pack
from gdrq_mm.deploy import float_layers, merge
from gdrq_mm.layers import (
    MERGED_FORMS,
    QUANT_LAYERS,
    QuantLayer,
    register_quant_layer,
)
from gdrq_mm.plan import count_macs
from gdrq_mm.training import get_state

W4A4 = dict(weight=dict(bits=4), activation=dict(bits=4))
LAYERS = [
    (nn.Conv1d(4, 8, 3), (2, 4, 9)),
    (nn.Conv3d(4, 8, 3), (2, 4, 5, 5, 5)),
    (nn.ConvTranspose1d(4, 8, 3), (2, 4, 9)),
    (nn.ConvTranspose2d(4, 8, 3, stride=2), (2, 4, 5, 5)),
    (nn.ConvTranspose3d(4, 8, 2), (2, 4, 3, 3, 3)),
    (Conv2dAdaptivePadding(4, 8, 3, stride=2), (2, 4, 9, 9)),
    (ConvWS2d(4, 8, 3), (2, 4, 6, 6)),
    (ConvAWS2d(4, 8, 3), (2, 4, 6, 6)),
    (DeformConv2dPack(4, 8, 3, padding=1), (2, 4, 6, 6)),
    (ModulatedDeformConv2dPack(4, 8, 3, padding=1), (2, 4, 6, 6)),
]
IDS = [type(layer).__name__ for layer, _ in LAYERS]
DEFORMABLE = DeformConv2dPack, ModulatedDeformConv2dPack


def trained(layer, shape):
    torch.manual_seed(0)
    model = nn.Sequential(copy.deepcopy(layer))
    gdrq_mm.quantize_(model, W4A4)
    optimizer = torch.optim.SGD(model.parameters(), lr=.01)
    x = torch.rand(shape)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model.eval(), x


@pytest.mark.parametrize('layer, shape', LAYERS, ids=IDS)
class TestOwnForward:

    def test_float_mode_is_the_float_layer(self, layer, shape):
        plain = nn.Sequential(copy.deepcopy(layer))
        model = copy.deepcopy(plain)
        gdrq_mm.quantize_(model, W4A4)
        get_state(model).set_phase('reshape')
        x = torch.rand(shape)
        for each in (plain, model):
            each(x).square().sum().backward()
        assert torch.equal(model(x), plain(x))
        assert torch.equal(model[0].weight.grad, plain[0].weight.grad)

    def test_both_operands_are_quantized(self, layer, shape):
        model, x = trained(layer, shape)
        with torch.no_grad():
            count = count_macs(model, lambda: model(x), 4)
            weight = model[0].weight_quantizer(model[0].weight)
            rounded = model[0].input_quantizer(x)
            plain = nn.Sequential(copy.deepcopy(layer)).eval()
            plain.load_state_dict(
                {key: value for key, value in model.state_dict().items()
                 if key in plain.state_dict()})
            plain[0].weight.copy_(weight)
            if isinstance(layer, DEFORMABLE):  # it interpolates its input
                assert set(count.float_parameters()) == {'0.weight'}
            else:
                assert count.low_bit_share == 1
                torch.testing.assert_close(model(x), plain(rounded))
        assert not torch.equal(weight, model[0].weight)

    def test_packed_and_loaded_it_computes_the_same(self, layer, shape):
        model, x = trained(layer, shape)
        loaded = nn.Sequential(copy.deepcopy(layer))
        gdrq_mm.quantize_(loaded, W4A4)
        loaded.load_state_dict(pack(model))
        assert torch.equal(loaded.eval()(x), model(x))

    def test_copies_and_pickles(self, layer, shape):
        model, x = trained(layer, shape)
        for copied in (copy.deepcopy(model),
                       pickle.loads(pickle.dumps(model))):
            assert torch.equal(copied(x), model(x))

    def test_merged_it_computes_the_same_or_in_float(self, layer, shape):
        model, x = trained(layer, shape)
        merged = merge(model, x)
        torch.testing.assert_close(merged(x), model(x))
        if isinstance(layer, Conv2dAdaptivePadding):  # it has an integer form
            assert not float_layers(merged)
            return
        assert 'no integer kernel' in float_layers(merged)['0']
        assert merged[0][0].weight.dtype == torch.int8


class Shifted(nn.Linear):
    """A user's layer."""

    def forward(self, x, shift=1):
        return F.linear(x, self.weight, self.bias) + shift


@pytest.fixture
def registry():
    """As it was, afterwards."""
    before = dict(QUANT_LAYERS), dict(MERGED_FORMS)
    yield
    for each, old in zip((QUANT_LAYERS, MERGED_FORMS), before):
        each.clear()
        each.update(old)


class TestRegister:

    def test_one_line_is_enough(self, registry):
        register_quant_layer(Shifted)
        model, x = trained(Shifted(4, 6), (3, 4))
        assert count_macs(model, lambda: model(x), 4).low_bit_share == 1
        layer = model[0]
        expected = F.linear(layer.input_quantizer(x), layer.weight_quantizer(
            layer.weight), layer.bias) + 5
        torch.testing.assert_close(layer(x, shift=5), expected)

    def test_an_integer_form_is_used(self, registry):
        seen = []

        class QuantShifted(QuantLayer, Shifted):

            def forward(self, x):
                return Shifted.forward(self, self.quantized_input(x))

        class MergedShifted(nn.Module):

            def __init__(self, layer, codes, scale, bias, grid, bits):
                super().__init__()
                seen.append(bits)
                self.codes, self.scale = codes.float(), scale
                self.bias = bias
                self.grid = grid

            def forward(self, x):
                return F.linear(self.grid.round(x), self.codes
                                * self.scale[:, None], self.bias) + 1

        register_quant_layer(Shifted, QuantShifted, MergedShifted)
        model, x = trained(Shifted(4, 6), (3, 4))
        merged = merge(model, x)
        assert isinstance(merged[0], MergedShifted) and seen == [4]
        torch.testing.assert_close(merged(x), model(x))

    def test_other_classes_are_refused(self):
        with pytest.raises(TypeError, match='class Linear.QuantLayer, Shif'):
            register_quant_layer(Shifted, nn.Linear)


@pytest.mark.parametrize('cls', [ConvWS2d, ConvAWS2d, Conv2dAdaptivePadding])
def test_layers_are_initialized_by_the_name_of_their_base(cls):
    """A run initializes after the conversion; mmengine looks for names among
    the bases of a class."""

    class Model(BaseModule):

        def __init__(self):
            super().__init__(init_cfg=dict(type='Constant', val=.25,
                                           layer='Conv2d'))
            self.conv = cls(3, 4, 3)

    model = Model()
    gdrq_mm.quantize_(model, W4A4)
    model.init_weights()
    assert (model.conv.latent_weight == .25).all()


class Pair(nn.Bilinear):
    """Of two inputs."""


class QuantPair(QuantLayer, Pair):
    input_names = ('input_quantizer', 'other_quantizer')

    def forward(self, x, other):
        return F.bilinear(
            self.quantized_input(x), self.quantized_input(
                other, self.other_quantizer), self.quantized_weight(),
            self.bias)


class Pairs(nn.Module):

    def __init__(self):
        super().__init__()
        self.first, self.pair = nn.Linear(8, 8), Pair(8, 8, 4)

    def forward(self, x):
        x = self.first(x)
        return self.pair(x, x * x)


def test_quantizers_of_all_inputs_are_no_float_weights(registry):
    register_quant_layer(Pair, QuantPair)
    model = Pairs()
    model.vector_quantizer = nn.Linear(2, 2)  # a name of the user's
    names = set(model.state_dict())
    gdrq_mm.quantize_(model, W4A4)
    gdrq_mm.calibrate(model, [lambda: model(torch.randn(4, 8))])
    assert any('other_quantizer' in key for key in model.state_dict())
    assert set(float_weights(model.state_dict())) == names


class NoInput(nn.Module):

    def forward(self):
        return self.weight


class QuantUnnamed(QuantPair):
    input_names = ('input_quantizer', 'other')


@pytest.mark.parametrize('classes, message', [
    ((NoInput, ), 'NoInput.forward takes no input'),
    ((Pair, QuantUnnamed), "QuantUnnamed.input_names has 'other': names end "
     "in '_quantizer'")])
def test_classes_that_cannot_be_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        register_quant_layer(*classes)
    assert classes[0] not in QUANT_LAYERS
