"""Models that rebuild themselves for deployment, of mmpretrain."""
import copy
import pickle

import pytest
import torch
from mmpretrain.models import LeViT, MobileOne, RepVGG
from torch import nn

import gdrq_mm
from gdrq_mm.checkpoint import pack
from gdrq_mm.merge import merge
from gdrq_mm.training import get_state

W4A4 = dict(weight=dict(bits=4), activation=dict(bits=4))


def repvgg(deploy=False):
    return RepVGG(dict(
        num_blocks=[1, 1, 1, 2], width_factor=[.125] * 4,
        group_layer_map=None, se_cfg=None), deploy=deploy)


def mobileone(deploy=False):
    return MobileOne(dict(
        num_blocks=[1, 1, 1, 2], width_factor=[.125] * 4,
        num_conv_branches=[2] * 4, num_se_blocks=[0] * 4), deploy=deploy)


def trained(model, image):
    optimizer = torch.optim.SGD(model.parameters(), lr=.01)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(image)[-1].square().mean().backward()
        optimizer.step()
    model.eval()  # some of these return nothing
    return model


@pytest.fixture
def image():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator()
                       .manual_seed(0))


def layers_in(model):
    return [each for each in model.modules()
            if getattr(each, 'weight_quantizer', None) is not None]


@pytest.mark.parametrize('make', [repvgg, mobileone])
def test_a_quantized_model_refuses_to_switch(make, image):
    model = make()
    gdrq_mm.quantize_(model, W4A4)
    trained(model, image)
    number, expected = len(layers_in(model)), model(image)[0]
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for each in (model, *copies):
        with pytest.raises(RuntimeError, match=(
                rf'model.switch_to_deploy\(\) would put float layers in the '
                f'place of {number} quantized .*before quantize_')):
            each.switch_to_deploy()
        with pytest.raises(RuntimeError, match='quantized'):
            next(module for name, module in each.named_modules()
                 if name and hasattr(module, 'switch_to_deploy')
                 ).switch_to_deploy()
        assert len(layers_in(each)) == number
        assert torch.equal(each(image)[0], expected)


@pytest.mark.parametrize('make', [repvgg, mobileone])
def test_deploy_first_then_quantize(make, image):
    """The order that the message names, from the float training on."""
    model = trained(make(), image)
    expected = model(image)[0]
    model.switch_to_deploy()
    torch.testing.assert_close(model(image)[0], expected, rtol=1e-3,
                               atol=1e-4)
    file = copy.deepcopy(model.state_dict())
    switched = make(deploy=True)  # as a config does
    switched.load_state_dict(file)
    convolutions = sum(isinstance(each, nn.Conv2d)
                       for each in switched.modules())
    gdrq_mm.quantize_(switched, W4A4)
    assert len(layers_in(switched)) == convolutions > 0
    trained(switched, image)
    assert not get_state(switched).uncalled_layers()
    again = make(deploy=True)
    gdrq_mm.quantize_(again, W4A4)
    again.load_state_dict(pack(switched))
    again.eval()
    result = switched(image)[0]
    assert torch.equal(again(image)[0], result)
    switched.switch_to_deploy()  # is switched: nothing to do
    assert torch.equal(switched(image)[0], result)
    merged = merge(switched, image)
    torch.testing.assert_close(merged(image)[0], result, rtol=1e-3,
                               atol=1e-4)


def test_levit_refuses_as_well():
    model = LeViT('128s', img_size=32)
    gdrq_mm.quantize_(model, W4A4)
    with pytest.raises(RuntimeError, match='before quantize_'):
        model.switch_to_deploy()


def test_a_model_that_lost_layers_is_not_packed():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    gdrq_mm.quantize_(model, W4A4)
    model[0] = nn.Linear(4, 4)
    with pytest.raises(ValueError, match='1 quantized layers are no longer '
                       'in the model, 0 for one'):
        pack(model)
