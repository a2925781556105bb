"""Models that rebuild themselves for deployment, of mmpretrain."""
import copy
import gc
import pickle

import pytest
import torch
from mmpretrain.models import LeViT, MobileOne, RepVGG
from mmpretrain.models.backbones.replknet import ReparamLargeKernelConv
from torch import nn

import gdrq_mm
from gdrq_mm.checkpoint import pack
from gdrq_mm.layers import lost_layers
from gdrq_mm.merge import merge
from gdrq_mm.training import get_state
from gdrq_mm.training.state import uncalled_layers

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
    assert not uncalled_layers(get_state(switched))
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


def large_kernel(merged=False):
    return nn.Sequential(ReparamLargeKernelConv(
        4, 4, 7, 1, 4, 3, small_kernel_merged=merged))


def test_large_kernels_are_merged_before_quantizing_only():
    model = large_kernel()
    gdrq_mm.quantize_(model, W4A4)
    with pytest.raises(RuntimeError, match=(
            r'model.0.merge_kernel\(\) would put float layers in the place '
            'of 2 quantized .*small_kernel_merged=True')):
        model[0].merge_kernel()
    assert len(layers_in(model)) == 2
    merged = large_kernel(merged=True)
    gdrq_mm.quantize_(merged, W4A4)
    merged[0].merge_kernel()  # is merged: nothing to do
    assert len(layers_in(merged)) == 1


LOST = '1 quantized layers are no longer in the model: 0. .*quantize it then'


def lost():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(2)))
    report = gdrq_mm.quantize_(model, W4A4)
    model[0] = nn.Linear(4, 4)
    return model, report


def test_a_model_that_lost_layers_is_not_packed():
    model, _ = lost()
    for each in (model, copy.deepcopy(model)):
        with pytest.raises(ValueError, match=LOST):
            pack(each)


def test_a_few_of_many_lost_layers_are_named():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    gdrq_mm.quantize_(model, W4A4)
    for index in range(7):
        model[index] = nn.Linear(4, 4)
    with pytest.raises(ValueError, match='7 quantized .*: 0, 1, 2, 3, 4 and '
                       '2 more. Other'):
        pack(model)


def test_a_state_without_its_model_knows_of_nothing_lost():
    model, _ = lost()
    state = get_state(model)
    assert lost_layers(state) == ['0']
    assert lost_layers(get_state(copy.deepcopy(model))) == []
    del model
    gc.collect()
    assert lost_layers(state) == []
