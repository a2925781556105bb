import copy
import pickle

import pytest
import torch
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from torch import nn

import gdrq_mm
from gdrq_mm import functional as F
from gdrq_mm.checkpoint import pack
from gdrq_mm.quantizers.scale_clip import default_k
from gdrq_mm.training import get_state
from gdrq_mm.training.state import uncalled_outputs


class Net(nn.Module):
    """A sum of a normalized branch and its input, read by a layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        y = self.norm(self.conv(x))
        y += x
        return self.head(y.relu())


def quantized(outputs=('norm', 'conv'), **residual):
    torch.manual_seed(0)
    model = Net()
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4),
        residual=dict(outputs=outputs, **residual)))
    return model


def train(model, steps, seed=1):
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 6, 6)).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize('bits', [4, 8])
def test_output_lies_on_the_grid_of_its_threshold(bits):
    model = train(quantized(bits=bits), 3).eval()
    seen = []
    model.norm.register_forward_hook(
        lambda m, x, y: seen.append(y.clone()))  # the sum writes into it
    model(torch.randn(2, 3, 6, 6))
    quantizer = model.norm.output_quantizer.quantizer
    codes = seen[0] / (quantizer.clip / F.num_levels(bits))
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
    assert codes.abs().max() <= F.num_levels(bits) + 1e-3


def test_threshold_follows_what_the_module_returns():
    model = quantized(outputs=['head'], threshold='nonzero')
    x, seen = torch.randn(2, 3, 6, 6), []
    model.head.register_forward_hook(
        lambda m, x, y: seen.append(y), prepend=True)
    gdrq_mm.calibrate(model, [lambda: model(x)])
    quantizer = model.head.output_quantizer.quantizer
    expected = 3 * default_k(8, True, of_nonzero=True) * \
        seen[0].abs().mean()
    torch.testing.assert_close(quantizer.clip, expected)


@pytest.mark.parametrize('kernels', ['fused', 'plain'])
def test_gradient_is_straight_through_and_that_of_the_sum_is_left_alone(
        kernels, monkeypatch):
    """Both branches of a sum get one and the same gradient tensor."""
    model = train(quantized(outputs=['norm'], threshold='nonzero', k=0.5), 12)
    if kernels == 'plain':
        monkeypatch.setattr(type(get_state(model)), 'is_plain',
                            property(lambda self: True))
    x = torch.randn(2, 3, 6, 6)
    raw = x.clone().requires_grad_()
    rounded = model.norm.output_quantizer(raw)
    other = x.clone().requires_grad_()
    weight = torch.randn(2, 3, 6, 6)
    (rounded + other).backward(weight)
    clip = model.norm.output_quantizer.quantizer.clip
    assert torch.equal(other.grad, weight)
    assert torch.equal(raw.grad, weight * (x.abs() <= clip))
    assert (x.abs() > clip).any()


def test_copies_train_alone_and_pickles_compute_the_same():
    model = train(quantized(), 12)
    copied = copy.deepcopy(model)
    before = model.norm.output_quantizer.quantizer.clip.clone()
    train(copied, 3, seed=2)
    assert torch.equal(model.norm.output_quantizer.quantizer.clip, before)
    assert not torch.equal(copied.norm.output_quantizer.quantizer.clip,
                           before)
    x = torch.randn(2, 3, 6, 6)
    loaded = pickle.loads(pickle.dumps(model.eval()))
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize('norm, swap', [
    (nn.SyncBatchNorm, revert_sync_batchnorm),
    (nn.BatchNorm2d, lambda model: convert_sync_batchnorm(model, 'torch'))])
def test_a_norm_that_takes_the_place_of_another_rounds_as_well(norm, swap):
    """mmengine puts others in the place of SyncBN, or SyncBN in theirs."""
    plain, model = train(quantized(), 12).eval(), Net()
    model.norm = norm(3)
    gdrq_mm.quantize_(model, get_state(plain).config)
    before = model.norm
    model = swap(model)
    model.load_state_dict(plain.state_dict())
    assert model.norm is not before and type(model.norm) is not norm
    assert len(model.norm._forward_hooks) == 1
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(model.eval()(x), plain(x))
    again = swap(model)  # changes nothing
    assert len(again.norm._forward_hooks) == 1


def test_outputs_that_were_never_seen_are_known():
    model, x = quantized(), torch.randn(2, 3, 6, 6)
    assert uncalled_outputs(get_state(model)) == ['conv', 'norm']
    model.norm.forward(model.conv(x))  # past its hooks
    assert uncalled_outputs(get_state(model)) == ['norm']
    model(x)
    assert uncalled_outputs(get_state(model)) == []


@pytest.mark.parametrize('packed', [False, True])
def test_checkpoints_and_packed_ones_give_the_same_outputs(packed):
    model, x = train(quantized(), 12).eval(), torch.randn(2, 3, 6, 6)
    weights = pack(model) if packed else model.state_dict()
    assert 'norm.output_quantizer.quantizer.clip' in weights
    other = quantized().eval()
    other.load_state_dict(weights, strict=True)
    assert torch.equal(other(x), model(x))


def test_resumed_training_equals_the_uninterrupted_one():
    model = train(quantized(), 4)
    resumed = quantized()
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    train(model, 9, seed=3), train(resumed, 9, seed=3)
    for key, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_float_checkpoints_load_and_others_are_refused_by_name():
    floats = Net().state_dict()
    quantized().load_state_dict(floats, strict=True)
    weights = train(quantized(), 1).state_dict()
    with pytest.raises(RuntimeError, match=r'norm.output_quantizer: checkpoint'
                       r' .*8 bits.*config float'):
        quantized(outputs=['conv']).load_state_dict(weights)


def test_a_module_that_returns_a_tuple_is_an_error_with_the_fix():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.LSTM(4, 4))
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  residual=dict(outputs=['1'])))
    with pytest.raises(TypeError, match='LSTM returns a tuple; residual'):
        model[1](torch.rand(2, 3, 4))


def test_half_precision_stays_half_precision():
    model = train(quantized(outputs=['norm']), 12)
    x = torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True)
    rounded = model.norm.output_quantizer(x)
    assert rounded.dtype is torch.bfloat16
    rounded.sum().backward()
    assert x.grad.dtype is torch.bfloat16
