"""What a step of an optimizer changes, and what it leaves alone."""
import copy
import warnings

import pytest
import torch
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.training import get_state, step_
from gdrq_mm.training.step import live_states

QUANTIZATION = dict(weight=dict(bits=4, k=2.), activation=dict(bits=4))


class Wrapper(torch.optim.Optimizer):
    """An optimizer that lets another one step, as Lookahead and SAM do."""

    def __init__(self, inner, fails=False):
        self.inner, self.fails = inner, fails
        super().__init__(inner.param_groups, {})

    def step(self, closure=None):
        self.inner.step()
        if self.fails:
            raise MemoryError
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group['params']:
                    parameter *= 1.  # counts as a change


def model_of(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    quantize_(model, QUANTIZATION)
    return model


def step(model, optimizer):
    torch.manual_seed(0)
    optimizer.zero_grad()
    model(torch.randn(6, 8)).square().sum().backward()
    optimizer.step()


def groups(model, **options):
    return [dict(params=model[0].parameters(), **options),
            dict(params=model[2].parameters())]


def no_gradient(model):
    for parameter in (model[0].weight, model[0].bias):
        parameter.register_post_accumulate_grad_hook(
            lambda each: setattr(each, 'grad', None))


def test_the_first_step_refuses_a_model_that_lost_layers():
    model = model_of()
    step(model, torch.optim.SGD(model.parameters(), lr=.1))
    model[0] = nn.Linear(8, 8)
    with pytest.raises(ValueError, match='1 quantized layers are no longer '
                       'in the model: 0.'):
        step(model, torch.optim.SGD(model.parameters(), lr=.1))


@pytest.mark.parametrize('how', ['lr', 'tensor lr', 'requires_grad',
                                 'no gradient'])
def test_a_frozen_weight_is_not_projected(how):
    model = model_of()
    options = dict(lr=dict(lr=0., requires_grad=.1).get(how, .1))
    if how == 'tensor lr':
        options = dict(lr=torch.tensor(0.))
    if how == 'requires_grad':
        model[0].weight.requires_grad_(False)
    if how == 'no gradient':
        no_gradient(model)
    before = [model[index].weight.detach().clone() for index in (0, 2)]
    optimizer = torch.optim.SGD(groups(model, **options), lr=.1)
    for _ in range(3):
        step(model, optimizer)
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[1])
    assert model[0].input_quantizer.num_updates == 3  # its input moves


def test_a_step_without_an_optimizer_leaves_frozen_weights_alone():
    """Called by optimizers that are none of torch.optim."""
    model = model_of()
    model[0].weight.requires_grad_(False)
    for index in (0, 2):
        model[index].weight.data[0, 0] = 5.  # to be clipped
    before = [model[index].weight.detach().clone() for index in (0, 2)]
    model(torch.randn(6, 8)).sum().backward()
    step_(get_state(model))
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[1])


def test_layers_of_one_weight_have_its_clip_values():
    """Projected once, and known to both."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    quantize_(model, QUANTIZATION)
    alone = model_of()
    with torch.no_grad():
        alone[0].weight.copy_(model[0].weight)
    step(model, torch.optim.SGD(model.parameters(), lr=1e-30))
    step(alone, torch.optim.SGD(alone.parameters(), lr=1e-30))
    assert torch.equal(model[0].weight, alone[0].weight)
    for index in (0, 2):
        assert torch.equal(model[index].weight_quantizer.clip,
                           alone[0].weight_quantizer.clip)
    assert torch.equal(model[0].quantized_weight(),
                       model[2].quantized_weight())


def test_wrapped_optimizer_projects_once_a_step():
    plain, wrapped = model_of(), model_of()
    step(plain, torch.optim.SGD(plain.parameters(), lr=.1))
    step(wrapped, Wrapper(Wrapper(torch.optim.SGD(
        wrapped.parameters(), lr=.1))))
    for key, value in plain.state_dict().items():
        assert torch.equal(wrapped.state_dict()[key], value), key


@pytest.mark.parametrize('depth', [1, 2])
def test_weights_are_projected_where_a_wrapper_clears_gradients(depth):
    """Behind the step that it wraps, as SAM does."""
    class Clearing(Wrapper):
        def step(self, closure=None):
            self.inner.step()
            self.zero_grad()

    plain, wrapped = model_of(), model_of()
    step(plain, torch.optim.SGD(plain.parameters(), lr=.1))
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=.1)
    for _ in range(depth):
        optimizer = Clearing(optimizer)
    step(wrapped, optimizer)
    for key, value in plain.state_dict().items():
        assert torch.equal(wrapped.state_dict()[key], value), key


def test_projection_goes_on_after_a_step_that_failed():
    model = model_of()
    fails = Wrapper(torch.optim.SGD(model.parameters(), lr=.1), fails=True)
    with pytest.raises(MemoryError):
        step(model, fails)
    assert model[0].input_quantizer.num_updates == 0
    fails.fails = False
    step(model, fails)
    assert model[0].input_quantizer.num_updates == 1
    fails.fails = True
    with pytest.raises(MemoryError):
        step(model, fails)
    del fails
    step(model, torch.optim.SGD(model.parameters(), lr=.1))
    assert model[0].input_quantizer.num_updates == 2


def test_a_failed_step_is_none_around_those_of_other_optimizers():
    """The failed one is still there, as in a debugger's last traceback."""
    model = model_of()
    fails = Wrapper(torch.optim.SGD(model.parameters(), lr=.1), fails=True)
    with pytest.raises(MemoryError):
        step(model, fails)
    step(model, torch.optim.SGD(model.parameters(), lr=.1))
    assert get_state(model).has_stepped
    assert model[0].input_quantizer.num_updates == 1


def test_models_are_updated_in_the_order_they_were_made():
    """It has to be that of all processes, each step reduces statistics."""
    models = [model_of() for _ in range(40)]
    models.append(copy.deepcopy(models[0]))
    states = [get_state(model) for model in models]
    assert [each for each in live_states() if each in states] == states


def test_state_knows_whether_a_step_was_seen():
    model = model_of()
    assert not get_state(model).has_stepped
    step(model, torch.optim.SGD(model.parameters(), lr=.1))
    assert get_state(model).has_stepped


def test_a_part_in_another_model_says_that_its_own_is_in_eval_mode():
    model = model_of().eval()
    layer = model[0]
    other = nn.Sequential(layer, nn.Linear(8, 2)).train()
    before = layer.weight_quantizer.clip.clone()
    optimizer = torch.optim.SGD(other.parameters(), lr=.1)
    with pytest.warns(UserWarning, match=(
            r'in eval mode while an optimizer trains 0: .*layer\.state')):
        step(other, optimizer)
    assert torch.equal(layer.weight_quantizer.clip, before)
    layer.state.train()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        step(other, optimizer)
        # One that is in eval mode on purpose is none to tell of.
        model.eval()
        step(model, torch.optim.SGD(model.parameters(), lr=.1))
    assert not torch.equal(layer.weight_quantizer.clip, before)


def test_copies_in_eval_mode_are_none_to_tell_of():
    """As EMAHook has one beside the model that trains."""
    model = model_of()
    averaged = copy.deepcopy(model).eval()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        step(model, torch.optim.SGD(model.parameters(), lr=.1))
    assert not averaged.training


def test_a_head_that_was_added_later_steps_a_frozen_model():
    model = model_of().requires_grad_(False)
    model.append(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model[-1].parameters(), .1)
    step(model, optimizer)
    state = get_state(model)
    assert state.has_stepped
    assert all(quantizer.initialized
               for quantizer in state.activation_quantizers.values())
