"""A Sequential keeps its steps: the state is none of them."""
import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.training import get_state


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 4))


@pytest.fixture
def model():
    found = network()
    quantize_(found, dict(weight=dict(bits=8)))
    return found


def test_steps_are_those_of_the_float_model(model):
    steps = [nn.Conv2d, nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    assert len(model) == 5
    assert all(map(isinstance, model, steps))
    assert isinstance(model[-1], nn.Linear) and isinstance(model[0], nn.Conv2d)
    assert isinstance(model, nn.Sequential)
    with pytest.raises(IndexError):
        model[5]


def test_a_slice_gives_features(model):
    x = torch.randn(2, 3, 6, 6)
    features = model[:-1]
    assert type(features) is nn.Sequential and len(features) == 4
    assert torch.equal(model[-1](features(x)), model(x))


def test_a_slice_keeps_names_and_a_failure_the_state():
    model = nn.Sequential(OrderedDict(
        first=nn.Linear(4, 4), act=nn.ReLU(), last=nn.Linear(4, 2)))
    quantize_(model, dict(weight=dict(bits=4)))
    assert list(dict(model[1:].named_children())) == ['act', 'last']
    with pytest.raises(IndexError):
        del model[7]
    assert get_state(model) is not None


def test_copies_and_pickles_stay_so(model):
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(other) == 5 and get_state(other) is not None


def test_changing_steps_leaves_the_state(model):
    state = get_state(model)
    model.append(nn.Softmax(1))
    assert isinstance(model[-1], nn.Softmax) and len(model) == 6
    del model[-1]
    model.insert(1, nn.Identity())
    assert [type(each).__name__ for each in model] == [
        'QuantConv2d', 'Identity', 'ReLU', 'AdaptiveAvgPool2d', 'Flatten',
        'QuantLinear']
    model[1] = nn.Dropout()
    del model[1:2]
    assert len(model) == 5 and get_state(model) is state
    assert model(torch.randn(2, 3, 6, 6)).shape == (2, 4)


def test_names_of_entries_are_as_before(model):
    assert network().state_dict().keys() < model.state_dict().keys()
    assert 'quantization_state.schemes' in model.state_dict()


@pytest.mark.parametrize('container', [
    nn.ModuleList([nn.Linear(4, 4)]), nn.ModuleDict(dict(a=nn.Linear(4, 4)))])
def test_what_is_no_model_is_refused(container):
    with pytest.raises(ValueError, match=(
            'which holds layers and computes nothing: convert the model that '
            'has it')):
        quantize_(container, dict(weight=dict(bits=4)))
    assert len(container) == 1
