"""Fused layers compute what the same layers compute step by step."""
import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gdrq_mm import quantize_
from gdrq_mm.training import QuantizationState, get_state

LAYERS = dict(
    plain=lambda: nn.Conv2d(6, 8, 3, padding=1),
    strided=lambda: nn.Conv2d(6, 8, (3, 1), stride=(2, 1), dilation=(1, 2),
                              bias=False),
    grouped=lambda: nn.Conv2d(6, 9, 1, groups=3),
    reflected=lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode='reflect'),
    same=lambda: nn.Conv2d(6, 4, 3, padding='same'),
    linear=lambda: nn.Linear(6, 5),
    linear_without_bias=lambda: nn.Linear(6, 5, bias=False))
BITS = dict(both=dict(weight=dict(bits=3, group_size=2),
                      activation=dict(bits=4)),
            binary=dict(weight=dict(bits=1), activation=dict(bits=2)),
            weight=dict(weight=dict(bits=4, group_size=-1)),
            activation=dict(activation=dict(bits=5)))


def input_of(layer, signed=True, batch=3):
    x = torch.randn((batch, 6, 7, 5) if not isinstance(layer, nn.Linear) else
                    (batch, 4, 6))
    return x if signed else x.relu()


@pytest.fixture
def step_by_step(monkeypatch):
    """Call it to have layers compute step by step from then on."""
    return lambda: monkeypatch.setattr(QuantizationState, 'is_plain', True)


def train(layer, steps=3):
    """A few steps: all they gave, and all that is left."""
    optimizer = torch.optim.SGD(layer.parameters(), .1)
    found = []
    for step in range(steps):
        torch.manual_seed(step)
        x = input_of(layer).requires_grad_()
        y = layer(x)
        optimizer.zero_grad()
        (y * torch.randn(y.shape)).sum().backward()
        optimizer.step()
        found += [y.detach(), x.grad,
                  *[p.grad.clone() for p in layer.parameters()
                    if p.grad is not None]]
    return found + [value.clone() for value in layer.state_dict().values()]


@pytest.mark.parametrize('layer, bits', itertools.product(LAYERS, BITS))
def test_training_equals_that_of_the_steps(layer, bits, step_by_step):
    torch.manual_seed(0)
    ours = LAYERS[layer]()
    plain = copy.deepcopy(ours)
    quantize_(ours, BITS[bits])
    quantize_(plain, BITS[bits])
    found = train(ours, steps=14)  # thresholds settle after ten
    step_by_step()
    for ours, expected in zip(found, train(plain, steps=14)):
        # Sums are added up in another order.
        torch.testing.assert_close(ours, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('layer', LAYERS)
def test_one_step_is_bit_equal(layer, step_by_step):
    torch.manual_seed(0)
    model = LAYERS[layer]()
    quantize_(model, BITS['both'])
    train(model, steps=11)
    found = []
    for _ in range(2):
        x = input_of(model).requires_grad_() if not found else \
            found[0][0].detach().requires_grad_()
        y = model(x)
        grads = torch.autograd.grad((y * y.detach().cos()).sum(),
                                    [x, *(p for p in model.parameters()
                                          if p.requires_grad)])
        found.append([x, y, *grads])
        step_by_step()
    for ours, expected in zip(*found):
        if layer.startswith('linear'):  # another order of the product
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(ours, expected)


def test_only_what_a_gradient_is_asked_of_gets_one():
    for frozen_input, frozen_weight in ((True, False), (False, True)):
        conv = nn.Conv2d(6, 4, 3)
        quantize_(conv, BITS['both'])
        train(conv, steps=1)
        conv.zero_grad()
        conv.weight.requires_grad_(not frozen_weight)
        x = input_of(conv).requires_grad_(not frozen_input)
        conv(x).sum().backward()
        assert (x.grad is None) == frozen_input
        assert (conv.weight.grad is None) == frozen_weight
        assert conv.bias.grad is not None


@pytest.mark.parametrize('layer', ['plain', 'linear'])
def test_nothing_is_saved_that_a_float_layer_does_not_save(layer):
    def saved_by(model, x):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
                lambda t: sizes.update({t.data_ptr(): t.numel()}) or t,
                lambda t: t):
            y = model(x)
        return sizes, y

    model, x = LAYERS[layer](), None
    x = input_of(model).requires_grad_()
    expected, _ = saved_by(model, x)
    quantize_(model, BITS['both'])
    train(model, steps=11)
    found, y = saved_by(model, x)
    assert {x.data_ptr(), model.weight.data_ptr()} == set(found)
    assert sum(found.values()) <= sum(expected.values())
    y.sum().backward()


def test_a_threshold_may_move_before_the_backward_pass():
    """As with two models that are trained in turn."""
    conv = nn.Conv2d(6, 4, 3)
    quantize_(conv, BITS['activation'])
    train(conv, steps=11)
    x = input_of(conv).requires_grad_()
    expected, = torch.autograd.grad(conv(x).sum(), x)
    y = conv(x)
    conv.input_quantizer.clip.mul_(.01)
    y.sum().backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('layer', ['plain', 'linear'])
def test_autocast_equals_the_steps(layer, dtype, step_by_step):
    torch.manual_seed(0)
    model = LAYERS[layer]()
    quantize_(model, BITS['both'])
    train(model, steps=11)
    model.eval()  # thresholds stay
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        x = input_of(model).requires_grad_()
        with torch.autocast('cpu', dtype=dtype):
            y = model(x)
        assert y.dtype is dtype
        grads = torch.autograd.grad(y.float().square().sum(),
                                    [x, model.weight, model.bias])
        assert all(grad.dtype is torch.float32 for grad in grads)
        found.append([y, *grads])
        step_by_step()
    for ours, expected in zip(*found):
        torch.testing.assert_close(ours.float(), expected.float(),
                                   rtol=2e-2, atol=2e-2)
    assert torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_models_of_other_dtypes_run(dtype):
    model = nn.Sequential(nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(60, 2))
    quantize_(model, BITS['both'])
    model.to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), .01)
    x = torch.randn(2, 6, 7, 5, dtype=dtype)
    model(x).sum().backward()
    optimizer.step()
    y = model(x)
    assert y.dtype is dtype and y.isfinite().all()
    y.sum().backward()


@pytest.mark.parametrize('reentrant', [True, False])
def test_activation_checkpointing_gives_the_same(reentrant):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3))
    quantize_(model, BITS['both'])
    train(model[0], steps=0)
    optimizer = torch.optim.SGD(model.parameters(), .1)
    for _ in range(11):
        model(torch.randn(2, 6, 7, 5)).square().sum().mul(1e-3).backward()
        optimizer.step(), optimizer.zero_grad()
    x, found = torch.randn(2, 6, 7, 5, requires_grad=True), []
    for run in (model, lambda x: checkpoint(model, x,
                                            use_reentrant=reentrant)):
        model.zero_grad()
        for quantizer in get_state(model).activation_quantizers.values():
            quantizer.seen.zero_()
        run(x).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()
                      if p.requires_grad]
                     + [model[0].input_quantizer.seen.clone()])
    for ours, expected in zip(*found):
        assert torch.equal(ours, expected)


def test_channels_last_and_empty_batches():
    conv = nn.Conv2d(6, 4, 3)
    quantize_(conv, BITS['both'])
    train(conv, steps=11)
    conv.eval()
    x = input_of(conv)
    y = conv(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, conv(x), rtol=1e-5, atol=1e-5)
    empty = input_of(conv, batch=0).requires_grad_()
    y = conv(empty)
    y.sum().backward()
    assert y.shape == (0, 4, 5, 3) and empty.grad.shape == empty.shape
    assert conv(x[0]).shape == (4, 5, 3)  # without a batch dimension


# -- neighbours that write in place -------------------------------------------


@pytest.mark.parametrize('shape', [(6, ), (3, 6), (4, 5, 6), (2, 3, 4, 6),
                                   (1, 1, 1, 1, 6), (0, 4, 6)])
@pytest.mark.parametrize('neighbour', [
    nn.ReLU(inplace=True), lambda y: y.mul_(2), lambda y: y.add_(1)],
    ids=['relu', 'mul', 'add'])
@pytest.mark.parametrize('bits', BITS)
def test_results_of_any_rank_may_be_changed_in_place(
        shape, neighbour, bits, step_by_step):
    """As the FFN of mmcv's transformers does."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 5)
    quantize_(linear, BITS[bits])
    train(linear, steps=1)
    x = torch.randn(shape)
    twin, results = copy.deepcopy(linear), []
    for layer in (linear, twin):
        if layer is twin:
            step_by_step()
        layer.zero_grad()
        given = x.clone().requires_grad_()
        y = neighbour(layer(given))
        assert y.shape == (*shape[:-1], 5)
        (y * torch.linspace(0, 1, y.numel()).view(y.shape)).sum().backward()
        results.append([y, given.grad, layer.weight.grad, layer.bias.grad])
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain)


def test_feed_forward_network_of_mmcv_trains():
    from mmcv.cnn.bricks.transformer import FFN
    model = FFN(embed_dims=8, feedforward_channels=16)
    quantize_(model, BITS['both'])
    optimizer = torch.optim.SGD(model.parameters(), lr=.01)
    for _ in range(2):
        model(torch.randn(2, 7, 8)).sum().backward()
        optimizer.step()
    assert model.layers[0][0].input_quantizer.num_updates == 2


def test_transposed_tokens_are_multiplied_as_they_are():
    linear = nn.Linear(6, 5)
    quantize_(linear, BITS['both'])
    train(linear, steps=1)
    tokens = torch.randn(3, 6, 7)
    assert torch.equal(linear(tokens.transpose(1, 2)),
                       linear(tokens.transpose(1, 2).contiguous()))


# -- evaluation --------------------------------------------------------------


@pytest.mark.parametrize('write', [
    lambda weight: weight.mul_(-1),
    lambda weight: weight.data.mul_(-1),
    lambda weight: weight.data.copy_(-weight)],
    ids=['in place', 'data', 'copied as EMAHook does'])
def test_evaluation_sees_every_write_to_a_weight(write):
    conv = nn.Conv2d(6, 4, 3, bias=False)
    quantize_(conv, BITS['weight'])
    train(conv, steps=1)
    conv.eval()
    x = input_of(conv)
    with torch.no_grad():
        first = conv(x)
        write(conv.weight)
        assert torch.equal(conv(x), -first)


def test_weights_in_training_are_quantized_anew_after_any_write():
    conv = nn.Conv2d(6, 4, 1, bias=False)
    quantize_(conv, BITS['weight'])
    train(conv, steps=1)
    x = input_of(conv)
    before = conv(x)
    conv.weight.data.mul_(-1)
    assert torch.equal(conv(x), -before)


@pytest.mark.parametrize('site', ['input', 'relu'])
def test_second_derivatives_are_refused(site):
    model = nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    quantize_(model, dict(activation=dict(bits=4, site=site)))
    train(model, steps=11)
    x = input_of(model[0]).requires_grad_()
    with pytest.raises(RuntimeError, match='no second derivative'):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)


def test_replacing_a_weight_is_refused_with_the_layer_and_the_ways_out():
    model = nn.Sequential(nn.Linear(6, 5))
    quantize_(model, BITS['both'])
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for replace in (
            lambda: setattr(model[0], 'weight', nn.Parameter(
                torch.zeros(5, 6))),
            lambda: model.load_state_dict(state, assign=True)):
        with pytest.raises(RuntimeError, match=(
                'weight Parameter of 0 .*fuse_conv_bn.*assign=True.*'
                'nn.DataParallel.*prune')):
            replace()
