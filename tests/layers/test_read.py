"""Weights that code reads past their layer."""
import copy
import operator
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.prune import l1_unstructured
from torch.utils.checkpoint import checkpoint

import gdrq_mm
from gdrq_mm.checkpoint import pack
from gdrq_mm.layers import (
    MERGED_FORMS,
    QUANT_LAYERS,
    register_quant_layer,
)
from gdrq_mm.plan import count_macs
from gdrq_mm.training import get_state
from gdrq_mm.training.state import uncalled_layers

W4A4 = dict(weight=dict(bits=4), activation=dict(bits=4))


class Beit(nn.Module):
    """Calls F.linear with the weight of its layer, and a bias of its own."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 12, bias=False)
        self.bias = nn.Parameter(torch.randn(12))
        self.fc = nn.Linear(12, 6)

    def forward(self, x):
        # All by keyword, as mmpretrain's does.
        return self.fc(F.linear(
            input=x, weight=self.qkv.weight, bias=self.bias))


class CalledAndRead(nn.Module):
    """Calls a layer, and computes with its weight as well."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x) + x @ self.fc.weight


class Conv(nn.Module):

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return F.conv2d(x[:, :, None, None], self.conv.weight,
                        self.conv.bias).flatten(1)


def trained(model, steps=2, config=W4A4):
    torch.manual_seed(0)
    gdrq_mm.quantize_(model, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
    return model.eval()


def layer_of(model):
    return next(iter(get_state(model).layers.values()))


@pytest.mark.parametrize('make', [Beit, CalledAndRead, Conv])
def test_reads_in_a_forward_are_quantized(make):
    model = trained(make())
    layer = layer_of(model)
    quantized = layer.weight_quantizer(layer.weight)
    assert not torch.equal(quantized, layer.weight)
    x = torch.randn(4, 8)
    expected = model(x)
    with torch.no_grad():  # on the grid already: rounding changes nothing
        layer.weight.copy_(quantized)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize('make', [Beit, CalledAndRead, Conv])
@pytest.mark.parametrize('packed', [True, False])
def test_a_loaded_model_computes_the_same(make, packed):
    model = trained(make())
    loaded = make()
    gdrq_mm.quantize_(loaded, W4A4)
    loaded.load_state_dict(pack(model) if packed else model.state_dict())
    x = torch.randn(4, 8)
    assert torch.equal(loaded.eval()(x), model(x))


@pytest.mark.parametrize('make', [Beit, Conv])
def test_inputs_of_operations_on_read_weights_are_quantized(make):
    model = trained(make())
    assert layer_of(model).past_reads == {'operation'}
    count = count_macs(model, lambda: model(torch.randn(4, 8)), 4)
    assert count.low_bit_share == 1


def test_other_uses_have_a_float_input_and_say_so():
    model = trained(CalledAndRead())
    assert model.fc.past_reads == {'value'}
    count = count_macs(model, lambda: model(torch.randn(4, 8)), 4)
    assert count.low_bit_share == .5


@pytest.mark.parametrize('weight', [
    dict(), dict(clip='search'), dict(clip='learned'), dict(type='LSQ'),
    dict(type='PACT')])
def test_new_values_that_are_loaded_get_new_ranges(weight):
    """As the error of a replaced weight advises."""
    config = dict(weight=dict(weight, bits=4))
    values = torch.randn(8, 8) * 3
    model = trained(nn.Sequential(nn.Linear(8, 8)), config=config)
    fresh = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(RuntimeError, match=(
            'New values go in by load_state_dict .*strict=False')):
        model[0].weight = nn.Parameter(values)
    kept = model[0].weight
    model[0].load_state_dict(dict(weight=values), strict=False)
    assert model[0].weight is kept
    fresh[0].load_state_dict(dict(weight=values, bias=model[0].bias))
    gdrq_mm.quantize_(fresh, config)
    x = torch.randn(4, 8)
    assert torch.equal(model(x), fresh.eval()(x))


def test_weights_that_are_only_read_are_trained():
    model = Beit()
    before = model.qkv.weight.detach().clone()
    trained(model)
    assert uncalled_layers(get_state(model)) == []
    assert not torch.equal(model.qkv.weight, before)
    clip = model.qkv.weight_quantizer.clip
    assert clip.all() and model.qkv.weight.abs().max() <= clip.max()


def test_the_gradient_is_straight_through():
    model = Beit()
    gdrq_mm.quantize_(model, W4A4)
    x = torch.randn(4, 8)
    model(x).sum().backward()
    grad = model.qkv.weight.grad
    expected = model.fc.weight_quantizer(model.fc.weight).sum(0)[:, None] * \
        x.sum(0)
    inside = model.qkv.weight.abs() <= model.qkv.weight_quantizer \
        .current_clip(model.qkv.weight).repeat_interleave(4)[:, None]
    torch.testing.assert_close(grad, torch.where(inside, expected, 0.))


def test_everybody_else_gets_the_parameter():
    model = trained(Beit())
    parameter = dict(model.named_parameters())['qkv.weight']
    assert model.qkv.weight is parameter
    nn.init.ones_(model.qkv.weight)
    assert torch.equal(model.state_dict()['qkv.weight'],
                       torch.ones_like(parameter))
    assert isinstance(copy.deepcopy(model).qkv.weight, nn.Parameter)
    assert isinstance(pickle.loads(pickle.dumps(model)).qkv.weight,
                      nn.Parameter)


def test_a_forward_that_is_called_as_a_method_reads_quantized_values():
    """mmseg's heads do so in ``predict``."""
    model = trained(CalledAndRead())
    x = torch.randn(4, 8)
    assert torch.equal(model.forward(x), model(x))


def test_a_forward_of_no_module_gets_the_parameter():
    model = trained(Beit())

    class Square(torch.autograd.Function):

        @staticmethod
        def forward(ctx, x):
            assert isinstance(model.qkv.weight, nn.Parameter)
            return x ** 2

    def forward(*inputs):
        return model.qkv.weight

    Square.apply(torch.ones(2))
    assert isinstance(forward(), nn.Parameter)


def test_reading_a_shape_is_no_use_of_the_weight():

    class Shape(nn.Module):

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            assert self.fc.weight.shape == (8, 8)
            return self.fc(x)

    assert trained(Shape()).fc.past_reads == set()


def test_transformer_layers_are_quantized_in_evaluation():
    """torch has a fast path that reads the weights of all its layers."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    plain = copy.deepcopy(model).eval()
    x = torch.randn(2, 5, 8)
    gdrq_mm.quantize_(model, W4A4)
    gdrq_mm.calibrate(model, [lambda: model(x)])
    with torch.no_grad():
        assert not torch.allclose(model.eval()(x), plain(x))
        expected = model(x)
        count = count_macs(model, lambda: model(x), 4)
    assert count.low_bit_share == 1
    torch.testing.assert_close(model(x), expected)  # with autograd as well


class Transposed(nn.Module):
    """Its layers' own forwards read their weight; so does other code."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 1)
        self.up = nn.ConvTranspose1d(8, 4, 2)

    def forward(self, x):
        x = x.to(self.up.weight.dtype)[..., None]
        return self.up(self.conv(F.conv1d(x, self.conv.weight))).flatten(1)


@pytest.mark.parametrize('make', [Beit, CalledAndRead, Transposed])
def test_compiled_models_compute_the_same(make):
    """Dynamo knows no frames: it leaves its graph for such a read."""
    torch._dynamo.reset()
    model = trained(make())
    x = torch.randn(4, 8)
    compiled = torch.compile(model, backend='eager')
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
    if make is Beit:
        gradients = []
        for each in (model, compiled):
            model.zero_grad()
            each.train()(x).square().sum().backward()
            gradients.append(model.qkv.weight.grad)
        assert torch.equal(*gradients)
    torch._dynamo.reset()


WRITES = dict(
    mul_=lambda layer: layer.weight.mul_(0),
    data=lambda layer: layer.weight.data.mul_(0),
    set_data=lambda layer: setattr(layer.weight, 'data', torch.zeros(8, 8)),
    item=lambda layer: layer.weight.__setitem__(0, 0.),
    detached=lambda layer: layer.weight.detach().zero_(),
    in_place=lambda layer: operator.imul(layer.weight.data, 2),
    out=lambda layer: torch.clamp(layer.weight, 0, 1, out=layer.weight))


class Does(nn.Module):
    """Something with the layer, inside a forward."""

    def __init__(self, what):
        super().__init__()
        self.fc, self.what = nn.Linear(8, 8), what

    def forward(self, x):
        with torch.no_grad():
            self.what(self.fc)
        return self.fc(x)


@pytest.mark.parametrize('name', WRITES)
def test_every_write_in_a_forward_is_refused(name):
    """It would be lost: the values are quantized ones."""
    model = Does(WRITES[name])
    gdrq_mm.quantize_(model, W4A4)
    with pytest.raises(RuntimeError, match='writes to the weight of fc'):
        model(torch.randn(2, 8))


class Own(nn.Linear):
    """Something with its own weight, as EEGNet's Conv2dWithConstraint."""
    what = None

    def forward(self, x):
        with torch.no_grad():
            self.what(self)
        return F.linear(x, self.weight, self.bias)


@pytest.fixture
def own(monkeypatch):
    for known in (QUANT_LAYERS, MERGED_FORMS):
        for key, value in known.items():  # restored at the end
            monkeypatch.setitem(known, key, value)
    monkeypatch.setitem(QUANT_LAYERS, Own, None)
    register_quant_layer(Own)

    def made(what, config):
        monkeypatch.setattr(Own, 'what', staticmethod(what))
        model = nn.Sequential(Own(8, 8))
        gdrq_mm.quantize_(model, config)
        return model

    return made


@pytest.mark.parametrize('name', WRITES)
def test_every_write_in_the_forward_of_the_layer_is_refused(name, own):
    model = own(WRITES[name], W4A4)
    with pytest.raises(RuntimeError, match='writes to the weight of 0'):
        model(torch.randn(2, 8))


@pytest.mark.parametrize('weight', [dict(bits=4), dict(type='LSQ', bits=4)])
def test_what_the_forward_of_the_layer_reads_is_a_plain_tensor(weight, own):
    def what(layer):
        assert type(layer.weight * 1) is torch.Tensor
        assert layer.weight.data.unique().numel() <= 8 * 16
        assert not layer.past_reads

    model = own(what, dict(weight=weight, activation=dict(bits=4)))
    plain = nn.Sequential(nn.Linear(8, 8))
    plain.load_state_dict({key: model.state_dict()[key]
                           for key in ('0.weight', '0.bias')})
    gdrq_mm.quantize_(plain, dict(weight=weight, activation=dict(bits=4)))
    x = torch.randn(4, 8)
    for _ in range(2):
        outputs = []
        for each in (model, plain):
            optimizer = torch.optim.SGD(each.parameters(), .1)
            outputs.append(each(x))
            outputs[-1].square().sum().backward()
            optimizer.step()
        torch.testing.assert_close(*outputs)
    torch.testing.assert_close(model[0].latent_weight, plain[0].latent_weight)


@pytest.mark.parametrize('freeze', [
    lambda layer: layer.weight.requires_grad_(False),
    lambda layer: setattr(layer.weight, 'requires_grad', False)])
def test_a_weight_may_be_frozen_in_a_forward(freeze):
    model = Does(freeze)
    gdrq_mm.quantize_(model, W4A4)
    model(torch.randn(2, 8))
    assert not model.fc.weight.requires_grad


@pytest.mark.parametrize('look', [
    lambda layer: layer.weight.size(0), lambda layer: layer.weight.shape])
def test_a_look_at_the_shape_is_no_use_of_the_weight(look):
    model = Does(look)
    gdrq_mm.quantize_(model, W4A4)
    model(torch.randn(2, 8))
    assert not model.fc.past_reads


@pytest.mark.parametrize('look', [
    lambda layer: layer.weight.dtype,
    lambda layer: torch.ones(2).type_as(layer.weight),
    lambda layer: layer.weight.new_zeros(3),
    lambda layer: torch.zeros_like(layer.weight)])
def test_a_look_at_the_dtype_is_known_to_be_one(look):
    """Codes, which a merged layer has for a weight, have another."""
    model = Does(look)
    gdrq_mm.quantize_(model, W4A4)
    model(torch.randn(2, 8))
    assert model.fc.past_reads == {'dtype'}


def test_a_use_of_detached_values_is_one():
    model = Does(lambda layer: layer.weight.detach() * 2)
    gdrq_mm.quantize_(model, W4A4)
    model(torch.randn(2, 8))
    assert model.fc.past_reads == {'value'}


def test_weights_that_were_taken_away_are_told_of():
    model = nn.Sequential(nn.Linear(8, 8))
    gdrq_mm.quantize_(model, W4A4)
    with pytest.raises(RuntimeError, match='0 is quantized and cannot be '
                                           'replaced.*before quantize_'):
        l1_unstructured(model[0], 'weight', .5)
        model(torch.randn(2, 8))


class Checkpointed(nn.Module):
    """A part that a backward repeats reads a weight past its layer."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        self.options = None

    def part(self, x):
        return F.linear(F.relu(x), self.last.weight, self.last.bias)

    def forward(self, x):
        x = self.first(x)
        return self.part(x) if self.options is None else checkpoint(
            self.part, x, **self.options)


@pytest.mark.parametrize('reentrant', [False, True])
def test_a_part_that_is_repeated_reads_what_it_did(reentrant):
    torch.manual_seed(0)
    model = Checkpointed()
    gdrq_mm.quantize_(model, dict(weight=dict(bits=2),
                                  activation=dict(bits=4)))
    x = torch.randn(4, 8)
    gdrq_mm.calibrate(model, [lambda: model(x)])
    gradients = []
    for options in (None, dict(use_reentrant=reentrant)):
        model.options = options
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([each.grad.clone() for each in model.parameters()
                          if each.grad is not None])
    assert len(gradients[0]) == 4
    for each in zip(*gradients):
        assert torch.equal(*each)
