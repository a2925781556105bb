"""The training step of a quantized model: projection, thresholds, phases.

Oracles simulate the step in numpy float64, one group at a time.
"""
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gdrq_mm import quantize_
from gdrq_mm.clip_search import search_clip
from gdrq_mm.quantizers import ScaleClipWeight
from gdrq_mm.training import any_threshold, get_state, metrics
from gdrq_mm.training.state import uncalled_layers

W4A4 = dict(weight=dict(bits=4), activation=dict(bits=4))
TINY = 1e-30  # a learning rate that changes no float32 weight


class Net(nn.Module):
    """Two convolutions and a linear layer; conv2 may be checkpointed."""

    def __init__(self, cp=None):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(6, 4)
        self.cp = cp

    def _inner(self, x):
        return self.relu(self.conv2(self.relu(x)))

    def forward(self, x):
        x = self.conv1(x)
        if self.cp is None:
            x = self._inner(x)
        else:
            x = checkpoint(self._inner, x, use_reentrant=self.cp)
        return self.fc(self.relu(x).mean((2, 3)))


def make(config=W4A4, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = Net(**kwargs)
    for layer in quantized_layers(model):
        nn.init.normal_(layer.weight, std=.2)  # uniform ones are not clipped
    quantize_(model, config)
    return model


def batch(seed=0, size=4):
    return torch.randn(size, 3, 5, 5,
                       generator=torch.Generator().manual_seed(seed))


def sgd(model, lr=.05, **kwargs):
    return torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr, **kwargs)


def train_step(model, optimizer, *inputs):
    optimizer.zero_grad()
    for x in inputs:
        model(x).pow(2).mean().backward()
    optimizer.step()


def quantized_layers(model):
    return [model.conv1, model.conv2, model.fc]


def thresholds(model):
    return [q.clip.item()
            for q in get_state(model).activation_quantizers.values()]


def clone(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one, other):
    return list(one) == list(other) and all(
        torch.equal(one[key], other[key]) for key in one)


def project_oracle(weight, k, group_size):
    """Eq. 7 to 9 on a float64 copy: clip values and clipped weight."""
    weight = weight.detach().double().numpy().copy()
    size = len(weight) if group_size == -1 else group_size
    clips = []
    for start in range(0, len(weight), size):
        group = weight[start:start + size]
        clips.append(k * np.abs(group).mean())
        np.clip(group, -clips[-1], clips[-1], out=group)
    return np.array(clips), weight


# -- projection of weights ----------------------------------------------------

@pytest.mark.parametrize('optimizer_class', [torch.optim.SGD,
                                             torch.optim.Adam])
@pytest.mark.parametrize('group_size', [1, 4, 16, -1])
@pytest.mark.parametrize('bits, k', [(1, 2.), (2, 2.5), (4, 2.)])
def test_weights_are_projected_after_each_step(
        bits, k, group_size, optimizer_class):
    model = make(dict(weight=dict(bits=bits, group_size=group_size, k=k)))
    optimizer = optimizer_class(model.parameters(), lr=.02)
    for seed in range(3):
        optimizer.zero_grad()
        model(batch(seed)).pow(2).mean().backward()
        layers = quantized_layers(model)
        # What the step alone does, without projection: on copies.
        shadows = [nn.Parameter(layer.weight.detach().clone())
                   for layer in layers]
        for shadow, layer in zip(shadows, layers):
            shadow.grad = layer.weight.grad.clone()
        shadow_optimizer = optimizer_class(shadows, lr=.02)
        for shadow, layer in zip(shadows, layers):
            shadow_optimizer.state[shadow] = {
                key: value.clone() if torch.is_tensor(value) else value
                for key, value in optimizer.state[layer.weight].items()}
        shadow_optimizer.step()
        optimizer.step()
        for layer, shadow in zip(layers, shadows):
            clips, expected = project_oracle(shadow, k, group_size)
            np.testing.assert_allclose(
                layer.weight_quantizer.clip, clips, rtol=1e-5)
            np.testing.assert_allclose(
                layer.weight.detach(), expected, rtol=1e-4, atol=1e-7)


def test_stored_weights_lie_inside_their_clip_values():
    model = make()
    optimizer = sgd(model, lr=.5)
    for seed in range(4):
        train_step(model, optimizer, batch(seed))
        for layer in quantized_layers(model):
            clip = layer.weight_quantizer.clip.repeat_interleave(4)
            largest = layer.weight.detach().flatten(1).abs().amax(1)
            assert (largest <= clip[:len(largest)]).all()


def test_bias_and_skipped_layers_are_not_projected():
    model = make(dict(weight=dict(bits=4), rules=[
        dict(match='fc', skip=True)]))
    optimizer = torch.optim.SGD(model.parameters(), lr=TINY)
    before = clone(model)
    train_step(model, optimizer, batch())
    after = model.state_dict()
    for key in ('fc.weight', 'fc.bias', 'conv1.bias'):
        assert torch.equal(after[key], before[key])
    assert not torch.equal(after['conv1.weight'], before['conv1.weight'])


def test_optimizer_with_part_of_the_weights_projects_only_those():
    model = make()
    optimizer = torch.optim.SGD(model.conv2.parameters(), lr=TINY)
    before = clone(model)
    train_step(model, optimizer, batch())
    after = model.state_dict()
    assert torch.equal(after['conv1.weight'], before['conv1.weight'])
    assert torch.equal(after['fc.weight'], before['fc.weight'])
    assert not torch.equal(after['conv2.weight'], before['conv2.weight'])
    assert all(clip > 0 for clip in thresholds(model))


def test_optimizer_of_something_else_changes_nothing():
    model, other = make(), nn.Linear(2, 2)
    model(batch())
    before = clone(model)
    optimizer = sgd(other)
    other(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert same(model.state_dict(), before)
    assert get_state(model).activation_quantizers[
        'conv1.input_quantizer'].seen.any()


def test_two_optimizers_of_one_model_move_thresholds_once():
    model, reference = make(), make()
    one = torch.optim.SGD([*model.conv1.parameters()], .05)
    two = torch.optim.SGD([*model.conv2.parameters(),
                           *model.fc.parameters()], .05)
    together = sgd(reference)
    for seed in range(3):
        model(batch(seed)).pow(2).mean().backward()
        for optimizer in (one, two):
            optimizer.step()
            optimizer.zero_grad()
        train_step(reference, together, batch(seed))
    assert same(model.state_dict(), reference.state_dict())


def test_two_models_do_not_disturb_each_other():
    model, other = make(), make(dict(weight=dict(bits=2)), seed=1)
    alone = make()
    optimizers = [sgd(model), sgd(other), sgd(alone)]
    for seed in range(3):
        train_step(alone, optimizers[2], batch(seed))
    for seed in range(3):
        optimizers[0].zero_grad()
        model(batch(seed)).pow(2).mean().backward()
        train_step(other, optimizers[1], batch(seed + 10))
        optimizers[0].step()
    assert same(model.state_dict(), alone.state_dict())


# -- steps and forwards -------------------------------------------------------

def test_without_a_step_nothing_moves():
    model = make()
    optimizer = sgd(model)
    train_step(model, optimizer, batch())
    before = clone(model)
    for seed in range(3):
        model(batch(seed)).sum().backward()
    assert same(model.state_dict(), before)


def test_accumulated_batches_count_like_one_big_batch():
    config = dict(W4A4, activation=dict(bits=4, threshold='nonzero'))
    model, whole = make(config), make(config)
    parts = [batch(1, 3), batch(2, 5)]
    for _ in range(2):
        optimizer, big = sgd(model, lr=0.), sgd(whole, lr=0.)
        train_step(model, optimizer, *parts)
        train_step(whole, big, torch.cat(parts))
        np.testing.assert_allclose(
            thresholds(model), thresholds(whole), rtol=1e-5)
        for ours, theirs in zip(quantized_layers(model),
                                quantized_layers(whole)):
            assert torch.equal(ours.weight, theirs.weight)
            assert int(ours.input_quantizer.num_updates) == int(
                theirs.input_quantizer.num_updates)


def test_step_that_a_grad_scaler_skips_changes_nothing():
    model = make()
    optimizer = sgd(model)
    train_step(model, optimizer, batch())
    scaler = torch.amp.GradScaler('cpu', init_scale=4.)
    optimizer.zero_grad()
    scaler.scale(model(batch(1)).sum()).backward()
    model.conv1.weight.grad[0, 0, 0, 0] = float('inf')
    before = clone(model)
    scaler.step(optimizer)
    assert same(model.state_dict(), before)


def test_eval_mode_is_frozen():
    model = make()
    optimizer = sgd(model)
    train_step(model, optimizer, batch())
    before = clone(model)
    model.eval()
    for seed in range(2):
        model(batch(seed) * 100)
    optimizer.step()  # of gradients left over
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in after
               if 'quantizer' in key)
    assert not any(q.seen.any() for q in
                   get_state(model).activation_quantizers.values())


@pytest.mark.parametrize('freeze_mode', [False, True])
def test_frozen_stage_observes_but_is_not_projected(freeze_mode):
    model, plain = make(), make()
    for net in (model, plain):
        net.train()
    model.conv1.requires_grad_(False)
    if freeze_mode:
        model.conv1.eval()
    weight = model.conv1.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), .05)
    train_step(model, optimizer, batch())
    train_step(plain, sgd(plain), batch())
    assert torch.equal(model.conv1.weight, weight)
    ours, theirs = model.conv1.input_quantizer, plain.conv1.input_quantizer
    assert ours.clip.item() == theirs.clip.item() > 0
    assert not torch.equal(model.conv2.weight, make().conv2.weight)


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('site', ['input', 'relu'])
def test_activation_checkpointing_changes_nothing(site, reentrant):
    config = dict(weight=dict(bits=4), activation=dict(bits=3, site=site))
    plain, saving = make(config), make(config, cp=reentrant)
    for model in (plain, saving):
        optimizer = sgd(model)
        for seed in range(3):
            train_step(model, optimizer, batch(seed), batch(seed + 5))
    assert all(int(q.num_updates) in (0, 3) for q in
               get_state(saving).activation_quantizers.values())
    assert same(plain.state_dict(), saving.state_dict())


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('site', ['input', 'relu'])
def test_repeated_forward_of_checkpointing_is_not_counted(site, reentrant):
    model = make(dict(activation=dict(bits=4, site=site)), cp=reentrant)
    x = batch().requires_grad_()
    model(x).pow(2).mean().backward()
    quantizers = get_state(model).activation_quantizers
    for name in ('conv1.input_quantizer', 'conv2.input_quantizer'):
        if site == 'input':
            numel = dict(conv1=x.numel(), conv2=4 * 6 * 25)[name[:5]]
            assert quantizers[name].seen[1].item() == numel
    if site == 'relu':
        assert [q.seen[1].item() for q in model.relu.site_quantizers] == [
            4 * 6 * 25] * 3


# -- activation thresholds ----------------------------------------------------

class OneLayer(nn.Module):

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(x)


def run_thresholds(inputs, **activation):
    """T_a after each step of a layer that reads ``inputs``."""
    model = OneLayer()
    quantize_(model, dict(activation=dict(bits=4, threshold='nonzero',
                                          **activation)))
    optimizer = torch.optim.SGD(model.parameters(), .1)
    seen = []
    for x in inputs:
        train_step(model, optimizer, x)
        seen.append(model.fc.input_quantizer.clip.item())
    return model, seen


@pytest.mark.parametrize('lr', [.01, .2, 1.])
@pytest.mark.parametrize('positive', [True, False])
def test_threshold_descends_as_eq_10_with_an_averaging_start(lr, positive):
    generator = np.random.default_rng(0)
    inputs = [torch.tensor(generator.normal(size=(6, 4)) * (1 + step % 3),
                           dtype=torch.float32) for step in range(30)]
    if positive:
        inputs = [x.abs() for x in inputs]
    _, seen = run_thresholds(inputs, k=5., lr=lr)
    threshold = 0.
    for step, x in enumerate(inputs):
        target = 5 * np.abs(x.double().numpy()).mean()
        rate = max(lr, 1 / (step + 1))
        threshold = threshold - rate * (threshold - target)
        assert seen[step] == pytest.approx(threshold, rel=1e-5)


def test_first_step_sets_the_threshold_and_later_ones_converge():
    constant = torch.full((2, 4), .5)
    _, seen = run_thresholds([constant * 9] + [constant] * 400, k=2., lr=.05)
    assert seen[0] == pytest.approx(9.)
    assert seen[-1] == pytest.approx(1., rel=1e-3)  # not away from it


def test_unseen_input_stays_float_and_seen_input_lies_on_the_grid():
    model = OneLayer()
    quantize_(model, dict(activation=dict(bits=2, k=2., threshold='mean')))
    x, quantizer = torch.rand(50, 4), model.fc.input_quantizer
    assert torch.equal(model.fc.quantized_input(x), x)
    train_step(model, sgd(model), x)
    model.eval()
    clip = quantizer.clip.double().item()
    expected = np.rint(np.clip(x.double().numpy(), 0, clip) / (clip / 3)) \
        * clip / 3
    np.testing.assert_allclose(model.fc.quantized_input(x), expected,
                               rtol=1e-5)


@pytest.mark.parametrize('negative_at, signed', [
    (0, True), (4, True), (9, True), (10, False), (15, False)])
def test_sign_is_settled_in_the_first_ten_updates(negative_at, signed):
    inputs = [torch.rand(3, 4) + .1 for _ in range(20)]
    inputs[negative_at] = -inputs[negative_at]
    model, _ = run_thresholds(inputs)
    assert model.fc.input_quantizer.is_signed == signed
    assert bool(model.fc.input_quantizer.signed) == signed


def test_sign_seen_late_carries_the_threshold_over_to_the_new_k():
    from gdrq_mm.quantizers.scale_clip import default_k
    inputs = [torch.full((2, 4), value) for value in (1., 1., -1., 3.)]
    _, seen = run_thresholds(inputs, lr=.01)
    unsigned, signed = (default_k(4, sign, of_nonzero=True)
                        for sign in (False, True))
    expected, mean = [], 0.
    for step, value in enumerate((1., 1., 1., 3.)):
        mean += (value - mean) / (step + 1)
        expected.append((unsigned if step < 2 else signed) * mean)
    np.testing.assert_allclose(seen, expected, rtol=1e-5)


def test_own_k_is_used_for_both_signs():
    for sign in (1, -1):
        _, seen = run_thresholds([sign * torch.ones(2, 4)], k=3.)
        assert seen == [3.]


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_activations_that_are_not_finite_are_skipped(bad):
    x, poisoned = torch.rand(3, 4), torch.rand(3, 4)
    poisoned[0, 0] = bad
    model = OneLayer()
    quantize_(model, dict(activation=dict(bits=4, k=2., threshold='mean')))
    optimizer, quantizer = sgd(model, lr=0.), model.fc.input_quantizer
    train_step(model, optimizer, poisoned)
    assert not quantizer.clip and not quantizer.num_updates
    train_step(model, optimizer, x)
    before = quantizer.clip.item()
    assert before == pytest.approx(2 * x.double().mean().item(), rel=1e-5)
    train_step(model, optimizer, poisoned)
    assert quantizer.clip.item() == before
    assert int(quantizer.num_updates) == 1 and not quantizer.is_signed


def test_empty_batch_moves_nothing():
    model, seen = run_thresholds([torch.ones(2, 4), torch.ones(0, 4)], k=2.)
    assert seen == [2., 2.]
    assert int(model.fc.input_quantizer.num_updates) == 1


def test_layer_that_is_not_called_keeps_its_threshold():
    model = make()
    optimizer = sgd(model)
    train_step(model, optimizer, batch())
    before = model.fc.input_quantizer.clip.item()
    optimizer.zero_grad()
    model.conv1(batch(3)).sum().backward()
    optimizer.step()
    assert model.fc.input_quantizer.clip.item() == before
    assert int(model.fc.input_quantizer.num_updates) == 1
    assert int(model.conv1.input_quantizer.num_updates) == 2


def test_layer_called_on_several_inputs_counts_them_as_one_batch():
    model = OneLayer()
    quantize_(model, dict(activation=dict(bits=4, k=2., threshold='mean')))
    optimizer = sgd(model)
    small, large = torch.ones(1, 4), torch.full((3, 4), 5.)
    (model(small).sum() + model(large).sum()).backward()
    optimizer.step()
    assert model.fc.input_quantizer.clip.item() == 2 * (4 + 60) / 16


def test_autocast_keeps_thresholds_in_float32():
    model = make()
    optimizer = sgd(model)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = model(batch()).float().pow(2).mean()
    loss.backward()
    optimizer.step()
    assert all(q.clip.dtype == torch.float32 and q.clip > 0 for q in
               get_state(model).activation_quantizers.values())
    plain = make()
    train_step(plain, sgd(plain), batch())
    np.testing.assert_allclose(thresholds(model), thresholds(plain), rtol=.05)


# -- phases -------------------------------------------------------------------

def test_reshape_clips_weights_and_activations_without_rounding():
    model = make()
    get_state(model).set_phase('reshape')
    optimizer = sgd(model)
    train_step(model, optimizer, batch())
    model.eval()
    conv, x = model.conv1, batch(1) * 3
    clip = conv.input_quantizer.clip.item()
    expected = nn.functional.conv2d(
        x.clamp(-clip, clip), conv.weight, conv.bias, padding=1)
    assert torch.equal(conv(x), expected)
    # the unsigned input of the linear layer is clamped at 0 as well
    clip = model.fc.input_quantizer.clip.item()
    x = torch.randn(3, 6) * 5
    assert torch.equal(
        model.fc(x), nn.functional.linear(
            x.clamp(0, clip), model.fc.weight, model.fc.bias))


def test_reshape_projects_weights_and_passes_gradients():
    model = make()
    get_state(model).set_phase('reshape')
    optimizer = torch.optim.SGD(model.parameters(), lr=TINY)
    weight = model.conv2.weight.detach().clone()
    train_step(model, optimizer, batch())
    clips, expected = project_oracle(weight, 3, 4)
    np.testing.assert_allclose(model.conv2.weight.detach(), expected,
                               rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(model.conv2.weight_quantizer.clip, clips,
                               rtol=1e-5)
    assert model.conv1.weight.grad.any()


def test_quantize_phase_rounds_and_reshape_comes_back():
    model = make().eval()
    state, float_model = get_state(model), Net()
    float_model.load_state_dict(make({}).state_dict())
    x = batch()
    assert state.phase == 'quantize'
    rounded = model(x)
    state.set_phase('reshape')
    assert torch.equal(model(x), float_model.eval()(x))
    state.set_phase('quantize')
    assert torch.equal(model(x), rounded)
    assert not torch.equal(rounded, float_model(x))


@pytest.mark.parametrize('config', [
    dict(weight=dict(bits=1), activation=dict(bits=2)),
    dict(weight=dict(bits=8, group_size=-1)),
    dict(W4A4, rules=[dict(match='fc', skip=True)])])
def test_a_reshaped_float_model_starts_other_bits(config):
    """Nothing of it was rounded: its weights load as those of a float one."""
    reshaped = make(dict(W4A4, activation=dict(bits=4, site='relu')))
    get_state(reshaped).set_phase('reshape')
    train_step(reshaped, sgd(reshaped), batch())
    model = make(config, seed=1)
    model.load_state_dict(reshaped.state_dict())
    assert get_state(model).phase == 'quantize'
    expected = make(config, seed=2)
    expected.load_state_dict({
        key: value for key, value in reshaped.state_dict().items()
        if 'quantiz' not in key})
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key]), key
    assert not any(thresholds(model))


def test_a_reshaped_float_model_of_the_same_scheme_keeps_its_thresholds():
    reshaped, model = make(), make(seed=1)
    get_state(reshaped).set_phase('reshape')
    train_step(reshaped, sgd(reshaped), batch())
    model.load_state_dict(reshaped.state_dict())
    assert get_state(model).phase == 'reshape'
    assert all(thresholds(model)) and thresholds(model) == thresholds(reshaped)


def test_unknown_phase_is_refused():
    with pytest.raises(ValueError, match="'float'"):
        get_state(make()).set_phase('float')


def test_phase_travels_with_the_state_dict():
    source, model = make(), make()
    get_state(source).set_phase('reshape')
    model.load_state_dict(source.state_dict())
    assert get_state(model).phase == 'reshape'
    assert torch.equal(model.eval()(batch()), source.eval()(batch()))


# -- metrics ------------------------------------------------------------------

def test_metrics_are_means_over_layers():
    model = make(dict(weight=dict(bits=3, group_size=-1, levels='odd'),
                      activation=dict(bits=4)))
    state, optimizer = get_state(model), sgd(model)
    train_step(model, optimizer, batch())
    state.collect_clipped = True
    inputs = {}
    for name in ('conv1', 'conv2', 'fc'):
        getattr(model, name).register_forward_pre_hook(
            lambda module, args, name=name: inputs.update({name: args[0]}))
    before = thresholds(model)
    train_step(model, optimizer, batch(1))
    figures = metrics(state)

    losses, clips, clipped = [], [], []
    for name, threshold in zip(('conv1', 'conv2', 'fc'), before):
        layer = getattr(model, name)
        w = layer.weight.detach().double().numpy()
        clip = float(layer.weight_quantizer.clip)
        quantized = np.rint(w / (clip / 3)) * (clip / 3)
        losses.append(np.abs(w - quantized).sum() / np.abs(w).sum())
        clips.append(clip)
        x = inputs[name].detach().numpy()
        clipped.append((np.abs(x) > np.float32(threshold)).sum()
                       / np.count_nonzero(x))
    assert figures == pytest.approx(dict(
        gdrq_ql=np.mean(losses), gdrq_weight_clip=np.mean(clips),
        gdrq_act_clip=np.mean(thresholds(model)),
        gdrq_clipped=np.mean(clipped), gdrq_phase=1.), rel=1e-4)
    assert 'gdrq_clipped' not in metrics(state)  # told once


def test_learned_activations_tell_how_much_they_clip():
    """Their quantizers are called; no kernel serves them."""
    model = make(dict(activation=dict(type='LSQ', bits=2)))
    state, optimizer = get_state(model), sgd(model)
    train_step(model, optimizer, batch())
    state.collect_clipped = True
    clipped = []
    for name in ('conv1', 'conv2', 'fc'):
        getattr(model, name).register_forward_pre_hook(
            lambda module, args: clipped.append(float(
                module.input_quantizer.clipped_fraction(args[0]))))
    train_step(model, optimizer, batch(1))
    assert max(clipped) > 0
    assert metrics(state)['gdrq_clipped'] == pytest.approx(np.mean(clipped))


@pytest.mark.parametrize('mode, phase, starts', [
    (True, 'quantize', True), (True, 'reshape', False),
    (False, 'quantize', False), (False, 'reshape', False)])
def test_a_weight_that_other_code_reads_starts_to_learn(mode, phase, starts):
    model = make(dict(weight=dict(type='LSQ', bits=4))).train(mode)
    layer, state = model.conv1, get_state(model)
    state.set_phase(phase)
    assert not layer.weight_quantizer.step.started
    state.weight(layer.weight_quantizer, layer.latent_weight)
    assert layer.weight_quantizer.step.started == starts


def test_evaluation_starts_nothing_to_learn():
    model = make(dict(weight=dict(type='LSQ', bits=4))).eval()
    before = clone(model)
    model(batch())
    assert same(model.state_dict(), before)


def test_clipped_values_are_counted_only_when_it_is_asked_for():
    model = make()
    optimizer = sgd(model)
    for seed in range(2):
        train_step(model, optimizer, batch(seed))
    assert 'gdrq_clipped' not in metrics(get_state(model))


# -- what a state knows of its layers -----------------------------------------

class Parts(nn.ModuleDict):
    """A model whose parts are read by name."""


def pair(names=('one', 'two')):
    model = Parts([(name, nn.Linear(4, 4)) for name in names])
    quantize_(model, dict(weight=dict(bits=4)))
    return model


@pytest.mark.parametrize('inference', [False, True])
def test_layers_know_which_others_read_the_same(inference):
    model = pair(('one', 'two', 'three')).eval()
    with torch.inference_mode(inference):
        x = torch.randn(2, 4)
        model['three'](model['two'](x) + model['one'](x))
    assert model['one'].same_input == ['two']
    assert model['two'].same_input == ['one']
    assert model['three'].same_input == []


def test_a_tensor_of_another_step_is_another_input():
    model, x = pair(), torch.randn(2, 4)
    model['one'](x).sum().backward()
    sgd(model).step()
    model['two'](x)
    assert model['one'].same_input == model['two'].same_input == []


def test_schemes_are_written_the_same_in_whatever_order_layers_are():
    one, other = (get_state(pair(names)).schemes for names in (
        ('one', 'two'), ('two', 'one')))
    assert torch.equal(one, other)
    assert one.dtype == torch.uint8  # a byte a letter


def test_a_phase_that_is_there_already_changes_nothing():
    model = make(dict(weight=dict(bits=2, clip='search')))
    train_step(model, sgd(model), batch())
    before = clone(model)
    get_state(model).set_phase('quantize')
    assert same(model.state_dict(), before)


def test_another_phase_searches_clip_values_anew():
    config = dict(weight=dict(bits=2, clip='search'))
    model, fresh = make(config), make(config, seed=1)
    train_step(model, sgd(model, lr=2.), batch())
    layers = list(zip(quantized_layers(model), quantized_layers(fresh)))
    with torch.no_grad():
        for layer, other in layers:
            layer.weight *= 3
            other.weight.copy_(layer.weight)
    for equal in (False, True):
        assert all(torch.equal(layer.quantized_weight(),
                               other.quantized_weight()) == equal
                   for layer, other in layers)
        for phase in ('reshape', 'quantize'):
            get_state(model).set_phase(phase)


def test_metrics_before_training_leave_out_what_is_not_there():
    model = make()
    assert set(metrics(get_state(model))) == {
        'gdrq_ql', 'gdrq_weight_clip', 'gdrq_phase'}
    activations = make(dict(activation=dict(bits=4)))
    assert metrics(get_state(activations)) == {'gdrq_phase': 1.}
    get_state(activations).set_phase('reshape')
    assert metrics(get_state(activations)) == {'gdrq_phase': 0.}


def test_metrics_change_nothing():
    model = make()
    optimizer = sgd(model)
    train_step(model, optimizer, batch())
    before = clone(model)
    metrics(get_state(model))
    assert same(model.state_dict(), before)


def test_any_threshold_tells_whether_activations_are_quantized():
    model = make()
    assert not any_threshold(get_state(model))
    train_step(model, sgd(model), batch())
    assert any_threshold(get_state(model))
    assert any_threshold(get_state(make(dict(weight=dict(bits=4)))))


# -- resuming -----------------------------------------------------------------

def through_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize('site', ['input', 'relu'])
def test_state_dict_survives_a_file_of_plain_tensors(site):
    config = dict(weight=dict(bits=2), activation=dict(bits=4, site=site))
    model = make(config)
    optimizer = sgd(model)
    for seed in range(3):
        train_step(model, optimizer, batch(seed))
    loaded = through_file(model.state_dict())
    assert same(loaded, model.state_dict())
    fresh = make(config, seed=7)
    fresh.load_state_dict(loaded)
    assert same(fresh.state_dict(), model.state_dict())
    assert torch.equal(fresh.eval()(batch()), model.eval()(batch()))


@pytest.mark.parametrize('steps_before', [1, 3, 12])
@pytest.mark.parametrize('optimizer_class, kwargs', [
    (torch.optim.SGD, dict(momentum=.9, weight_decay=1e-3)),
    (torch.optim.AdamW, {})])
@pytest.mark.parametrize('site', ['input', 'relu'])
def test_resumed_training_equals_uninterrupted_training(
        site, optimizer_class, kwargs, steps_before):
    config = dict(weight=dict(bits=3), activation=dict(bits=4, site=site))

    def start(seed):
        model = make(config, seed)
        return model, optimizer_class(model.parameters(), lr=.02, **kwargs)

    model, optimizer = start(0)
    for step in range(steps_before):
        train_step(model, optimizer, batch(step))
    saved = through_file((model.state_dict(), optimizer.state_dict()))
    resumed, its_optimizer = start(1)
    resumed.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    for step in range(steps_before, steps_before + 3):
        train_step(model, optimizer, batch(step))
        train_step(resumed, its_optimizer, batch(step))
    assert same(model.state_dict(), resumed.state_dict())


def test_loading_into_a_trained_model_forgets_its_own_thresholds():
    source, model = make(), make()
    train_step(source, sgd(source), batch())
    optimizer = sgd(model)
    for seed in range(12):
        train_step(model, optimizer, -batch(seed) * 3)
    model.load_state_dict(source.state_dict())
    assert torch.equal(model.eval()(batch()), source.eval()(batch()))
    for net in (model, source):
        train_step(net.train(), sgd(net), batch(1))
    assert same(model.state_dict(), source.state_dict())


def test_thresholds_move_though_the_optimizer_holds_no_quantized_weight():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = torch.optim.SGD(model[1].parameters(), 0.1)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    assert model[0].input_quantizer.num_updates == 1
    assert torch.equal(model[0].weight, before)


def test_an_overflown_step_that_a_fused_optimizer_skips_changes_nothing():
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 0.1, fused=True)
    model(batch()).sum().backward()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    # As torch's GradScaler tells an optimizer that does the skipping itself.
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.ones(())
    optimizer.step()
    assert same(model.state_dict(), before)
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert not same(model.state_dict(), before)
    assert model.conv1.input_quantizer.num_updates == 1


class Attention(nn.Module):
    """Reads the weight of one layer, and leaves another alone."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 4), nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        return self.out(nn.functional.linear(x, self.qkv.weight))


def test_layers_that_are_not_called_are_named_and_left_as_they_are():
    model = Attention()
    quantize_(model, dict(weight=dict(bits=2)))
    model.unused.weight.grad = torch.ones(4, 4)
    before = dict(model.unused.named_parameters())['weight'].clone()
    optimizer = torch.optim.SGD(model.parameters(), 1e-30)
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    assert uncalled_layers(get_state(model)) == ['unused']
    assert torch.equal(dict(model.unused.named_parameters())['weight'],
                       before)


def test_a_missing_threshold_warns_once_in_evaluation():
    model = make().eval()
    with pytest.warns(UserWarning, match='threshold is not set') as caught:
        model(batch())
        model(batch())
    assert len(caught) == 1


# -- clip-in-forward and searched clip values ---------------------------------

SCHEMES = [dict(projection=False), dict(clip='search'),
           dict(clip='search', projection=False)]


@pytest.mark.parametrize('weight', SCHEMES)
def test_stored_weights_are_clipped_by_projection_only(weight):
    model, free = (make(dict(weight=dict(bits=2, **scheme)))
                   for scheme in (weight, SCHEMES[0]))
    reference = [layer.weight.detach().clone() for layer in
                 quantized_layers(model)]
    for net in (model, free):
        train_step(net, sgd(net, lr=TINY), batch())
    for layer, before in zip(quantized_layers(model), reference):
        changed = not torch.equal(layer.weight, before)
        assert changed == weight.get('projection', True)
        if changed:
            _, expected = project_oracle(before, 2., 4)
            np.testing.assert_allclose(layer.weight.detach(), expected,
                                       rtol=1e-5)


@pytest.mark.parametrize('weight', SCHEMES)
@pytest.mark.parametrize('steps_before', [1, 4])
def test_training_of_such_schemes_is_resumed_exactly(
        weight, steps_before, monkeypatch):
    monkeypatch.setattr(ScaleClipWeight, 'SEARCH_INTERVAL', 3)
    config = dict(weight=dict(bits=2, **weight), activation=dict(bits=4))
    model, resumed = make(config), make(config, seed=1)
    optimizer, its_optimizer = sgd(model, lr=.1), sgd(resumed, lr=.1)
    for step in range(steps_before):
        train_step(model, optimizer, batch(step))
    resumed.load_state_dict(through_file(model.state_dict()))
    clips = model.conv1.weight_quantizer.clip.detach().clone()
    for step in range(steps_before, steps_before + 3):
        train_step(model, optimizer, batch(step))
        train_step(resumed, its_optimizer, batch(step))
    assert same(model.state_dict(), resumed.state_dict())
    assert not torch.equal(model.conv1.weight_quantizer.clip, clips)


def test_clip_is_searched_when_rounding_begins():
    model = make(dict(weight=dict(bits=2, clip='search', levels='odd')))
    optimizer = sgd(model, lr=.3)
    train_step(model, optimizer, batch())
    early = model.conv1.weight_quantizer.clip.detach().clone()
    get_state(model).set_phase('reshape')
    for step in range(3):
        train_step(model, optimizer, batch(step))
    get_state(model).set_phase('quantize')
    expected = search_clip(model.conv1.weight, 2, 4)
    model(batch())
    assert torch.equal(model.conv1.weight_quantizer.clip, expected)
    assert not torch.equal(early, expected)


def test_checkpoint_of_a_searched_clip_is_refused_without_search():
    trained = make(dict(weight=dict(bits=2, clip='search')))
    with pytest.raises(RuntimeError, match='searched clip'):
        make(dict(weight=dict(bits=2))).load_state_dict(trained.state_dict())


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('kind', ['ScaleClip', 'LSQ'])
def test_evaluation_without_thresholds_warns_whatever_the_type(kind, mode):
    model = make(dict(activation=dict(type=kind, bits=4))).eval()
    with mode(), pytest.warns(UserWarning, match='threshold is not set yet'):
        model(batch())


def test_a_reshaped_checkpoint_says_that_nothing_is_rounded(recwarn):
    """Without the hook nothing else would begin to."""
    source = make()
    get_state(source).set_phase('reshape')
    model = make()
    with pytest.warns(UserWarning, match="saved in the 'reshape' phase.*"
                      "set_phase\\('quantize'\\)"):
        model.load_state_dict(source.state_dict())
    assert get_state(model).phase == 'reshape'
    recwarn.clear()
    model.load_state_dict(source.state_dict())  # it is in that phase
    get_state(model).set_phase('quantize')
    model.load_state_dict(make().state_dict())
    assert not [each for each in recwarn if 'phase' in str(each.message)]


def test_a_step_forgets_the_inputs_it_compared():
    """Which layers read the same tensor is asked within one step."""
    model = make()
    state = get_state(model)
    model(batch()).sum().backward()
    assert state._first_inputs
    sgd(model).step()
    assert not state._first_inputs


def test_schemes_outlive_an_average_of_all_buffers():
    """mmengine's SyncBuffersHook adds up those of all ranks, which wrap
    around as bytes do."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    quantize_(model, dict(weight=dict(bits=4)))
    before = model.state_dict()['quantization_state.schemes'].clone()
    state = get_state(model)
    state.schemes.copy_(4 * before // 4)
    assert not torch.equal(state.schemes, before)
    assert torch.equal(model.state_dict()['quantization_state.schemes'],
                       before)
    model.load_state_dict(model.state_dict())
