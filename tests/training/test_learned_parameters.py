"""Which optimizer trains what quantizers learn, and with which options."""
import warnings

import pytest
import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from gdrq_mm import quantize_
from gdrq_mm.training import (
    add_learned_parameters,
    average_gradients_over_ranks,
    get_state,
    learned_parameters,
)

LSQ = dict(weight=dict(type='LSQ', bits=4),
           activation=dict(type='LSQ', bits=4))


def make_model(config=LSQ):
    torch.manual_seed(0)
    model = nn.Sequential()
    for name in ('body', 'head'):
        model.add_module(name, nn.Sequential(
            nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()))
    quantize_(model, config)
    return model


def step(model, optimizer):
    model(torch.randn(2, 3, 5, 5)).square().mean().backward()
    optimizer.step()


def names_of(model, groups):
    names = {id(each): name for name, each in
             learned_parameters(get_state(model)).items()}
    return {names[id(each)] for group in groups for each in group['params']}



def float_parameters(model):
    return [value for name, value in model.named_parameters()
            if 'quantizer' not in name]


def test_relus_go_with_the_layer_beside_them():
    """Not with the first group."""
    model = make_model(dict(weight=dict(bits=4), activation=dict(
        type='LSQ', bits=4, site='relu')))
    groups = [[value for name, value in model[part][0].named_parameters()
               if name in ('weight', 'bias')] for part in (0, 1)]
    optimizer = torch.optim.SGD([
        dict(params=groups[0], lr=.01), dict(params=groups[1], lr=.1)])
    added = add_learned_parameters(get_state(model), optimizer)
    assert {group['lr']: names_of(model, [group]) for group in added} == {
        .01: {f'body.{part}.step.ratio' for part in
              ('0.input_quantizer', '1.site_quantizers.0')},
        .1: {f'head.{part}.step.ratio' for part in
             ('0.input_quantizer', '1.site_quantizers.0')}}


def test_an_optimizer_gets_those_of_the_weights_it_holds():
    model = make_model()
    weight, bias = model.body[0].weight, model.body[0].bias
    optimizer = torch.optim.SGD([weight, bias], lr=.1)
    added = add_learned_parameters(get_state(model), optimizer)
    assert names_of(model, added) == {
        'body.0.input_quantizer.step.ratio',
        'body.0.weight_quantizer.step.ratio'}


def test_those_of_a_frozen_layer_go_with_the_nearest_one():
    model = make_model()
    model.body[0].weight.requires_grad = False
    optimizer = torch.optim.SGD(
        [value for value in float_parameters(model) if value.requires_grad],
        lr=.1)
    added = add_learned_parameters(get_state(model), optimizer)
    assert names_of(model, added) == set(learned_parameters(get_state(model)))


@pytest.mark.parametrize('first', ['body', 'head'])
def test_those_of_a_frozen_layer_are_held_once(first):
    """By two optimizers, one of which holds the frozen weight as well."""
    model = make_model()
    for each in (model.body[0].weight, model.body[0].bias):
        each.requires_grad_(False)
    state, both = get_state(model), []
    for name in sorted(('body', 'head'), reverse=first == 'head'):
        both.append(torch.optim.SGD([
            value for key, value in model[name == 'head'].named_parameters()
            if 'quantizer' not in key], lr=.1))
        add_learned_parameters(state, both[-1])
    held = [id(each) for optimizer in both
            for group in optimizer.param_groups for each in group['params']]
    assert len(held) == len(set(held))
    assert {id(each) for each in learned_parameters(state).values()} <= set(
        held)


def test_weight_decay_of_step_sizes_is_told():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=.1, weight_decay=.1)
    with pytest.warns(UserWarning, match=(
            'weight decay pulls .*body.0.weight_quantizer and 3 more '
            'quantizers.*add_learned_parameters')):
        step(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        step(model, optimizer)  # once an optimizer
        add_learned_parameters(get_state(model), optimizer)
        optimizer = torch.optim.SGD(optimizer.param_groups, lr=.1)
        step(model, optimizer)


def test_decay_that_a_quantizer_asks_for_is_none_to_tell():
    model = make_model(dict(weight=dict(bits=4),
                            activation=dict(type='PACT', bits=4)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        step(model, torch.optim.SGD(model.parameters(), lr=.1,
                                    weight_decay=.1))


FROZEN = {
    'the input of a frozen layer': dict(
        rules=[dict(match='body.0', activation=dict(type='LSQ', bits=4))]),
    'the weight of a frozen layer': dict(
        rules=[dict(match='body.0', weight=dict(type='LSQ', bits=4))]),
    'a sum': dict(residual=dict(outputs=['body.1'], type='LSQ', bits=8))}


@pytest.mark.parametrize('what', FROZEN)
def test_what_is_learned_of_a_frozen_layer_must_be_held_as_well(what):
    """By whatever optimizer trains all other weights."""
    model = nn.Sequential()
    for name in ('body', 'head'):
        model.add_module(name, nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()))
    model.body[0].weight.requires_grad = False
    optimizer = torch.optim.SGD(
        [each for each in model.parameters() if each.requires_grad], .01)
    quantize_(model, dict(dict(weight=dict(bits=4), activation=dict(bits=4)),
                          **FROZEN[what]))
    assert learned_parameters(get_state(model))
    with pytest.raises(RuntimeError, match='is learned, but the SGD'):
        step(model, optimizer)


def test_gradients_are_means_over_ranks_once_a_backward_pass(monkeypatch):
    """The other rank has a gradient of 4 for each value; what it alone
    computed counts as well."""
    reduced = []

    def all_reduce(flat):
        reduced.append(len(flat))
        flat += 4

    monkeypatch.setattr('torch.distributed.all_reduce', all_reduce)
    monkeypatch.setattr('torch.distributed.get_world_size', lambda: 2)
    one, other, unused = (nn.Parameter(torch.ones(size)) for size in (2, 3, 1))
    average_gradients_over_ranks([one, other, unused])
    (2 * one).sum().add((other * other).sum()).backward()
    assert reduced == [6 + 3]  # and how many ranks have each
    assert one.grad.tolist() == [3., 3.]
    assert other.grad.tolist() == [3., 3., 3.]
    assert unused.grad.tolist() == [2.]


@pytest.mark.parametrize('kind', ['ScaleClip', 'DoReFa'])
def test_a_hook_that_unfreezes_a_model_makes_nothing_learned(kind):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=.1)
    quantize_(model, dict(weight=dict(type=kind, bits=4)))
    model.requires_grad_(True)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.rand(2, 3, 8, 8)).sum().backward()
        optimizer.step()


def test_an_optimizer_of_shards_takes_them_once(tmp_path):
    """Its groups are copies: moved ones would be stepped twice."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        for first in ('model', 'optimizer'):
            model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
            lsq = dict(weight=dict(type='LSQ', bits=4))
            if first == 'model':
                quantize_(model, lsq)
            optimizer = ZeroRedundancyOptimizer(
                list(model.parameters()), torch.optim.SGD, lr=.1)
            if first == 'model':
                with pytest.raises(ValueError, match='was built with what '
                                   'quantizers learn .*QuantizedModel'):
                    add_learned_parameters(get_state(model), optimizer)
                continue
            quantize_(model, lsq)
            added, = add_learned_parameters(get_state(model), optimizer)
            assert added['weight_decay'] == 0
    finally:
        torch.distributed.destroy_process_group()


def test_an_optimizer_takes_them_once():
    model = make_model()
    optimizer = torch.optim.SGD(float_parameters(model), lr=.1)
    state = get_state(model)
    assert len(add_learned_parameters(state, optimizer)) == 1
    sizes = [len(group['params']) for group in optimizer.param_groups]
    assert add_learned_parameters(state, optimizer) == []
    assert sizes == [len(group['params']) for group in optimizer.param_groups]


class Freezes(nn.Sequential):
    """Freezes its body in every ``train()``, as mm backbones do."""
    frozen_stages = 1

    def train(self, mode=True):
        super().train(mode)
        self.body.eval()
        for parameter in self.body.parameters():
            parameter.requires_grad = False
        return self


@pytest.mark.parametrize('config', [
    LSQ, dict(weight=dict(type='PACT', bits=4),
              activation=dict(type='PACT', bits=4, site='relu')),
    dict(weight=dict(bits=4), activation=dict(bits=4, threshold='learned'))])
def test_quantizers_of_a_stage_that_train_freezes_learn(config):
    class Outer(nn.Module):

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.backbone = Freezes()
            for name in ('body', 'head'):
                self.backbone.add_module(name, nn.Sequential(
                    nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()))

        def forward(self, x):
            return self.backbone(x)

    model = Outer()
    quantize_(model.train(), config)
    held = learned_parameters(get_state(model))
    optimizer = torch.optim.SGD(model.parameters(), .1)
    model.train()
    step(model, optimizer)
    before = {name: each.detach().clone() for name, each in held.items()}
    step(model, optimizer)
    body = {name for name in held if 'body' in name}
    assert body and all(held[name].requires_grad for name in body)
    moved = {name for name in body if not torch.equal(held[name],
                                                      before[name])}
    assert moved
    assert not model.backbone.body[0].latent_weight.requires_grad


def test_what_was_frozen_by_hand_stays_so():
    model = make_model()
    for parameter in model.head[0].input_quantizer.parameters():
        parameter.requires_grad_(False)
    model.train()
    assert not model.head[0].input_quantizer.step.ratio.requires_grad
    assert model.head[0].weight_quantizer.step.ratio.requires_grad
    relus = make_model(dict(weight=dict(bits=4), activation=dict(
        type='LSQ', bits=4, site='relu')))
    for parameter in relus.head[1].parameters():
        parameter.requires_grad_(False)
    relus.train()
    assert not any(each.requires_grad for each in relus.head[1].parameters())
    model.requires_grad_(False)  # a teacher
    model.train()
    assert not any(each.requires_grad for each in model.parameters())


@pytest.mark.parametrize('kind', ['LSQ', 'PACT'])
def test_a_part_that_is_frozen_by_hand_learns_nothing(kind):
    """Linear probing: its quantizers are frozen with it."""
    model = make_model(dict(weight=dict(type=kind, bits=4),
                            activation=dict(type=kind, bits=4)))
    for parameter in model.body.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.SGD(
        [each for each in model.parameters() if each.requires_grad], .1)
    for _ in range(2):
        model.train()
        step(model, optimizer)
    assert not any(each.requires_grad for each in model.body.parameters())


def test_frozen_parameters_get_no_gradient_from_other_ranks(monkeypatch):
    monkeypatch.setattr(torch.distributed, 'all_reduce', lambda x: None)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 1)
    trained, frozen = (nn.Parameter(torch.ones(2)) for _ in range(2))
    average_gradients_over_ranks([trained, frozen])
    frozen.requires_grad_(False)
    (trained * 2).sum().backward()
    assert trained.grad.tolist() == [2, 2] and frozen.grad is None


def test_what_has_no_gradient_anywhere_gets_none(monkeypatch):
    """Zeros would let an optimizer decay it, and go on by its momentum."""
    monkeypatch.setattr(torch.distributed, 'all_reduce', lambda x: None)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 1)
    used, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
    average_gradients_over_ranks([used, unused])
    (used * 2).sum().backward()
    assert used.grad.tolist() == [2, 2] and unused.grad is None


def test_a_backward_pass_that_failed_does_not_end_the_averaging(monkeypatch):
    """As where one that ran out of memory is tried again."""
    reduced = []
    monkeypatch.setattr(torch.distributed, 'all_reduce', reduced.append)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 1)
    early, late = (nn.Parameter(torch.ones(2)) for _ in range(2))
    average_gradients_over_ranks([early, late])

    def fail(gradient):
        raise RuntimeError('out of memory')

    middle = early * 2
    failing = middle.register_hook(fail)
    # The gradient of ``late`` is there before the pass fails.
    with pytest.raises(RuntimeError, match='out of memory'):
        (middle.exp() * late).sum().backward(inputs=[late, early])
    failing.remove()
    for _ in range(2):
        reduced.clear()
        (early * 2 * late).sum().backward()
        assert len(reduced) == 1


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split('.')[:2])) < (2, 6),
    reason='optimizers of torch before 2.6 keep no names')
def test_names_of_an_optimizer_stay_those_of_its_parameters():
    model = make_model()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=.1)
    add_learned_parameters(get_state(model), optimizer)
    names = {id(each): name for name, each in model.named_parameters()}
    assert len(optimizer.param_groups) == 2
    for group in optimizer.param_groups:
        assert group['param_names'] == [names[id(each)]
                                        for each in group['params']]
