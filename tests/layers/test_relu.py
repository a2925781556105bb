"""The ReLU site: one threshold a call site, outputs on the grid."""
import copy
import pickle
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gdrq_mm
from gdrq_mm import quantize_
from gdrq_mm.layers import QuantReLU
from gdrq_mm.layers.relu import count_call_sites, is_on_grid

RELU = dict(weight=dict(bits=8), activation=dict(
    bits=4, threshold='nonzero', k=2., site='relu'))


class Residual(nn.Module):
    """The block of a ResNet: one ReLU, three calls."""

    def __init__(self, channels=4, reentrant=None):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.relu = nn.ReLU(inplace=True)
        self.reentrant = reentrant

    def forward(self, x):

        def _inner_forward(x):
            out = self.relu(self.conv1(x) * 10)
            out = self.relu(self.conv2(out) * 100)
            return self.conv3(out) + x

        if self.reentrant is None:
            out = _inner_forward(x)
        else:
            out = checkpoint(_inner_forward, x, use_reentrant=self.reentrant)
        return self.relu(out)


class Heads(nn.Module):
    """A tower over pyramid levels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU()

    def forward(self, levels):
        return [self.relu(self.conv(x)) for x in levels]


class Helper(Heads):
    """Calls in a method of its own, and in one it inherits."""

    def extra(self, x):
        return self.relu(x)


class Overriding(Residual):

    def forward(self, x):
        return self.relu(self.conv1(x))


class NoCall(nn.Module):

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        return getattr(self, 'relu')(x)


def image(seed=0, scale=1.):
    return scale * torch.randn(
        2, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def make(cls=Residual, config=RELU, **kwargs):
    torch.manual_seed(0)
    model = nn.Sequential(cls(**kwargs))
    quantize_(model, config)
    return model


def train(model, *inputs, lr=0.):
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for x in inputs:
        optimizer.zero_grad()
        out = model(x)
        sum(o.pow(2).mean() for o in (
            out if isinstance(out, list) else [out])).backward()
        optimizer.step()
    return model


# -- call sites ---------------------------------------------------------------

@pytest.mark.parametrize('parent, sites', [
    (Residual(), 3), (Heads(), 1), (Helper(), 2), (Overriding(), 1),
    (NoCall(), 1), (nn.Sequential(nn.ReLU()), 1)])
def test_call_sites_are_counted_in_the_source(parent, sites):
    assert count_call_sites(parent, 'relu') == sites


def test_another_name_is_another_relu():
    assert count_call_sites(Residual(), 'conv1') == 1
    assert count_call_sites(Residual(), 'act') == 1  # at least one


def test_a_lambda_in_a_class_is_no_method_with_calls():
    class WithLambda(Residual):
        twice = lambda self, x: self.relu(self.relu(x))  # noqa: E731

    assert count_call_sites(WithLambda(), 'relu') == 3


def test_class_without_source_has_one_site():
    scope = {'nn': nn}
    exec('class Hidden(nn.Module):\n    def forward(self, x):\n'
         '        return self.relu(self.relu(x))', scope)
    assert count_call_sites(scope['Hidden'](), 'relu') == 1


# -- one threshold a site -----------------------------------------------------

def test_residual_block_gets_one_threshold_a_call_site():
    model, inputs = make(), []
    relu = model[0].relu
    relu.register_forward_pre_hook(
        lambda module, args: inputs.append(args[0].detach().clone()))
    train(model, image())
    assert len(inputs) == len(relu.site_quantizers) == 3
    for quantizer, x in zip(relu.site_quantizers, inputs):
        expected = 2 * x[x > 0].double().mean().item()
        assert quantizer.clip.item() == pytest.approx(expected, rel=1e-5)
        assert not quantizer.is_signed


def test_each_call_is_quantized_with_the_threshold_of_its_site():
    model = train(make(), image()).eval()
    relu, outputs = model[0].relu, []
    relu.register_forward_hook(
        lambda module, args, out: outputs.append((args[0].clone(), out)))
    for _ in range(2):  # the count starts anew with every forward
        outputs.clear()
        model(image(1))
        for quantizer, (x, out) in zip(relu.site_quantizers, outputs):
            clip = quantizer.clip.item()
            expected = (x.double().clamp(0, clip) / (clip / 15)).round() \
                * (clip / 15)
            torch.testing.assert_close(out.double(), expected)


def test_calls_in_a_loop_share_one_threshold():
    model = make(Heads)
    relu, inputs = model[0].relu, []
    relu.register_forward_pre_hook(
        lambda module, args: inputs.append(args[0].detach().flatten()))
    train(model, [image(0), image(1, 5.), image(2, 9.)])
    assert len(relu.site_quantizers) == 1
    values = torch.cat(inputs).double()
    mean = values[values > 0].mean().item()
    assert relu.site_quantizers[0].clip.item() == pytest.approx(
        2 * mean, rel=1e-5)


def test_a_forward_that_fails_does_not_shift_the_sites():
    model = train(make(), image())
    expected = model.eval()(image(1))
    with pytest.raises(RuntimeError):
        model[0].conv3.register_forward_pre_hook(
            lambda *_: (_ for _ in ()).throw(RuntimeError()))
        model(image(1))
    model[0].conv3._forward_pre_hooks.clear()
    assert torch.equal(model(image(1)), expected)


@pytest.mark.parametrize('reentrant', [True, False])
def test_site_order_is_right_under_activation_checkpointing(reentrant):
    plain, saving = make(), make(reentrant=reentrant)
    for seed in range(3):
        x = image(seed)
        gradients = []
        for model in (plain, saving):
            optimizer = torch.optim.SGD(model.parameters(), .01)
            leaf = x.clone().requires_grad_()
            model(leaf).pow(2).mean().backward()
            gradients.append([leaf.grad] + [
                p.grad.clone() for p in model.parameters()
                if p.grad is not None])
            optimizer.step()
            optimizer.zero_grad()
        for ours, theirs in zip(*gradients):
            torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(plain[0].relu.site_quantizers,
                            saving[0].relu.site_quantizers):
        assert torch.equal(ours.clip, theirs.clip)
        # (One ReLU gives nothing but zeros in one of the steps.)
        assert 2 <= ours.num_updates == theirs.num_updates <= 3


# -- on the grid --------------------------------------------------------------

def test_layer_after_a_relu_takes_its_output_as_it_is():
    model = train(make(), image(), image(1))
    for name, updates in (('conv1', 2), ('conv2', 0), ('conv3', 0)):
        quantizer = getattr(model[0], name).input_quantizer
        assert int(quantizer.num_updates) == updates, name


def test_input_on_the_grid_is_not_quantized_twice():
    model = train(make(), image()).eval()
    conv = model[0].conv2
    conv.input_quantizer.clip.fill_(1e-3)  # would spoil what goes through it
    conv.input_quantizer.num_updates.fill_(50)
    conv.input_quantizer.forget()
    x = model[0].relu(image(1))
    assert is_on_grid(x)
    assert conv.quantized_input(x) is x
    assert conv.quantized_input(x.clone()).max() <= 1.001e-3


@pytest.mark.parametrize('change', [
    lambda x: x + 0, lambda x: x.add_(1), lambda x: x[:1],
    lambda x: nn.functional.max_pool2d(x, 2), torch.Tensor.detach])
def test_changed_relu_output_is_not_on_the_grid(change):
    model = train(make(), image()).eval()
    with torch.no_grad():
        x = model[0].relu(image(1))
        assert is_on_grid(x) and not is_on_grid(change(x))


def test_plain_tensors_are_not_on_the_grid():
    assert not is_on_grid(image())
    assert not is_on_grid(torch.relu(image()))
    with torch.inference_mode():
        assert not is_on_grid(image())


def test_layer_that_reads_no_relu_output_falls_back_to_its_input():
    model = train(make(), image())
    quantizer, x = model[0].conv1.input_quantizer, image()
    assert quantizer.is_signed
    assert quantizer.clip.item() == pytest.approx(
        2 * x.double().abs().mean().item(), rel=1e-5)
    assert len(model.eval()[0].conv1.quantized_input(x).unique()) <= 15


def test_skipped_relu_hands_its_readers_to_their_own_quantizers():
    model = make(config=dict(**RELU, rules=[
        dict(match='0.relu', skip=True)]))
    assert type(model[0].relu) is nn.ReLU
    train(model, image())
    for name in ('conv1', 'conv2', 'conv3'):
        assert getattr(model[0], name).input_quantizer.initialized


@pytest.mark.parametrize('cls, x', [
    (Residual, image()), (Heads, [image(), image(1)])])
def test_inference_mode_gives_the_same_outputs(cls, x):
    model = train(make(cls), x).eval()
    with torch.no_grad():
        expected = model(x)
    with torch.inference_mode():
        found = model(x)
    for ours, theirs in zip(found, expected):
        assert torch.equal(ours, theirs)


def test_reshape_phase_clips_the_output_without_rounding():
    model = train(make(), image()).eval()
    model.quantization_state.set_phase('reshape')
    clip = model[0].relu.site_quantizers[0].clip.item()
    x = image(1, 100.)
    assert torch.equal(model[0].relu(x), x.clamp(0, clip))


@pytest.mark.parametrize('inplace', [True, False])
@pytest.mark.parametrize('steps', [0, 2, 12])
@pytest.mark.parametrize('phase', ['reshape', 'quantize'])
def test_an_inplace_relu_is_so_in_every_step(inplace, steps, phase):
    """Before it has a threshold, while signs are counted, and after: code may
    go on with the input."""
    model = make()
    for _ in range(steps):
        train(model, image())
    model.quantization_state.set_phase(phase)
    relu = model.eval()[0].relu
    relu.inplace = inplace
    x = image(1)
    before = x.clone()
    out = relu(x)
    assert torch.equal(x, out if inplace else before)
    assert not torch.equal(out, before)


def test_an_inplace_relu_has_the_gradient_of_one_that_is_not():
    grads = []
    for inplace in (True, False):
        model = train(make(), image())
        model[0].relu.inplace = inplace
        x = image(1).requires_grad_()
        model[0].relu(2 * x).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads) and grads[0].any()


def test_a_layer_that_reads_more_than_a_relu_is_the_same_in_inference():
    """An input on the grid is not quantized twice; inference tensors count
    no changes."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.conv = nn.ReLU(), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            out = self.relu(self.conv(x))
            first = self.conv(out)
            out = out + 1 if self.training else out.add_(1)  # off the grid
            return first + self.conv(out)

    torch.manual_seed(0)
    model = nn.Sequential(Shared())
    quantize_(model, RELU)
    model = train(model, image()).eval()
    with torch.no_grad():
        expected = model(image(1))
    with torch.inference_mode():
        assert torch.equal(model(image(1)), expected)


def test_copy_counts_its_own_sites():
    model = train(make(), image()).eval()
    twin = copy.deepcopy(model)
    expected = model(image(1))
    assert isinstance(twin[0].relu, QuantReLU)
    model[0].relu(image())  # a stray call moves the count of this one only
    assert torch.equal(twin(image(1)), expected)
    assert not twin[0].relu._calls
    assert list(model[0].relu._calls.values()) == [1]


# -- calls of one module ------------------------------------------------------


class Once(nn.Module):
    """Its ReLU at one place."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.relu(self.fc(x))


class Thrice(Once):
    """At three places, whose values differ by a factor."""

    def forward(this, x):
        for_first = this.relu(this.fc(x))
        for_second = this.relu(for_first * 10)
        return this.relu(for_second * 10)


def test_call_sites_are_counted_by_whatever_name_self_has():
    assert count_call_sites(Thrice(), 'relu') == 3


def test_threads_share_a_model():
    torch.manual_seed(0)
    model = Thrice()
    gdrq_mm.quantize_(model, dict(activation=dict(bits=4, site='relu')))
    inputs = torch.randn(60, 1, 4)
    gdrq_mm.calibrate(model, [lambda: model(inputs.view(60, 4))])
    model.eval()
    with torch.no_grad():
        expected = [model(x) for x in inputs]
        slow = model.fc.register_forward_hook(lambda *_: time.sleep(.001))
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(torch.no_grad()(model), inputs))
        slow.remove()
    assert all(map(torch.equal, found, expected))
    assert not model.relu._calls  # of threads that are gone


class Alias(Once):

    def forward(self, x):
        act = self.relu
        return act(act(self.fc(x)) * 2)


class Replaced(Once):

    def forward(self, x):
        return self.relu(self.fc(super().forward(x)))


class Helped(Once):

    def forward(self, x):
        return self.helped(self.helped(x) * 2)

    def helped(self, x):
        return self.relu(self.fc(x))


class Loop(Once):

    def forward(self, x):
        for _ in range(3):
            x = super().forward(x)
        return x


def step_of(parent):
    """One training step; the parent is called at two places."""
    model = nn.Sequential(parent, nn.Linear(4, 4), parent)
    gdrq_mm.quantize_(model, dict(activation=dict(bits=4, site='relu')))
    optimizer = torch.optim.SGD(model.parameters(), lr=.1)
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    return model


@pytest.mark.parametrize('parent', [Alias(), Replaced(), Helped()],
                         ids=lambda each: type(each).__name__)
def test_places_that_the_source_does_not_show_are_warned_of(parent):
    with pytest.warns(UserWarning, match=(
            r'more places than they have thresholds: 0.relu \(2 places, '
            r'1 thresholds\).*write them so')):
        model = step_of(parent)
    assert len(model[0].relu.site_quantizers) == 1
    assert model[0].relu.most_calls == 2
    pickle.dumps(model)  # nothing of a frame is kept


def test_one_relu_of_two_blocks_is_warned_of():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), relu),
                          nn.Sequential(nn.Linear(4, 4), relu))
    with pytest.warns(UserWarning, match=(
            r'more places than they have thresholds: 0.0.1 \(2 places, '
            r'1 thresholds\).*a ReLU of its own')):
        step_of(model)


@pytest.mark.parametrize('parent', [Once(), Thrice(), Loop()],
                         ids=lambda each: type(each).__name__)
def test_places_that_are_shown_and_loops_are_not_warned_of(parent):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        step_of(parent)


def test_a_parent_whose_forward_is_called_directly_is_not_warned_of():
    model = nn.Sequential(Once(), nn.Linear(4, 4))
    gdrq_mm.quantize_(model, dict(activation=dict(bits=4, site='relu')))
    optimizer = torch.optim.SGD(model.parameters(), lr=.1)
    x = model[0].forward(torch.randn(3, 4)) + 1
    model[1](model[0].forward(x)).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        optimizer.step()
