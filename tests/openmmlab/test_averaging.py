"""Averages inside a model: momentum encoders of contrastive ones."""
import copy

import mmpretrain.models  # noqa: F401, registers MoCo
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch.utils.data import DataLoader

import gdrq_mm
from gdrq_mm.openmmlab.averaging import (
    average_what_was_added,
    averaging_hooks,
)
from gdrq_mm.training import get_state, learned_parameters

LSQ = dict(weight=dict(type='LSQ', bits=4), activation=dict(type='LSQ',
                                                            bits=4))
MOCO = dict(
    queue_len=16, feat_dim=4, momentum=.1,
    data_preprocessor=dict(type='SelfSupDataPreprocessor'),
    backbone=dict(type='ResNet', depth=18, stem_channels=4, base_channels=4),
    neck=dict(type='MoCoV2Neck', in_channels=32, hid_channels=8,
              out_channels=4),
    head=dict(type='ContrastiveHead', temperature=.2,
              loss=dict(type='CrossEntropyLoss')))


def batch(numbers):
    torch.manual_seed(numbers[0])
    return dict(inputs=[torch.rand(4, 3, 32, 32) for _ in range(2)],
                data_samples=[DataSample() for _ in range(4)])


def train(way, quantization, folder, **arguments):
    """A MoCo after 12 steps, converted by the hook or as it was built."""
    hook = dict(type='GDRQHook', **arguments)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        if way == 'hook':
            hook['quantization'] = quantization
            model = MODELS.build(dict(MOCO, type='MoCo'))
        else:
            model = MODELS.build(dict(
                MOCO, type='QuantizedModel', architecture='MoCo',
                quantization=quantization))
        Runner(model, str(folder), experiment_name=folder.name,
               train_dataloader=DataLoader(range(12), collate_fn=batch),
               train_cfg=dict(by_epoch=True, max_epochs=1),
               optim_wrapper=dict(optimizer=dict(type='SGD', lr=.05)),
               custom_hooks=[hook], default_scope='mmpretrain').train()
    return model


@pytest.fixture(params=['hook', 'model'])
def trained(request, tmp_path):
    return train(request.param, LSQ, tmp_path)


def test_momentum_encoders_average_what_quantizers_learn(trained):
    layers = get_state(trained).layers
    ours = layers['backbone.layer4.1.conv2']
    averaged = layers['encoder_k.module.0.layer4.1.conv2']
    for part in ('weight_quantizer', 'input_quantizer'):
        step, theirs = (getattr(layer, part).step.detached
                        for layer in (ours, averaged))
        assert torch.allclose(step, theirs, rtol=.1)
    # No gradient reaches them: no optimizer, and no DDP, waits for one.
    assert not any(name.startswith('encoder_k.') for name in
                   learned_parameters(get_state(trained)))


@pytest.mark.parametrize('way', ['hook', 'model'])
@pytest.mark.parametrize('clip', ['threshold', 'search', 'learned'])
def test_momentum_encoders_forget_what_they_averaged_before_rounding(
        way, clip, tmp_path):
    """They begin at zero and would hold half of each clip value by then."""
    model = train(way, dict(weight=dict(bits=4, clip=clip),
                            activation=dict(bits=4)), tmp_path, begin_iter=6)
    layers = get_state(model).layers
    ours, averaged = (
        layer.weight_quantizer.current_clip(layer.latent_weight)
        for layer in (layers['backbone.layer4.1.conv2'],
                      layers['encoder_k.module.0.layer4.1.conv2']))
    assert torch.allclose(ours, averaged, rtol=.1)


def test_nothing_is_learned_from_batches_that_calibrate(trained):
    before = {key: value.clone() for key, value in
              trained.state_dict().items()}

    def changed():
        return {key for key, value in trained.state_dict().items()
                if not torch.equal(value, before[key])}

    data = batch([0])

    def forward():
        trained.loss(data['inputs'], data['data_samples'])

    gdrq_mm.calibrate(trained, [forward])
    assert all('_quantizer.' in key for key in changed())
    gdrq_mm.update_bn_stats(trained, [forward])
    assert {key.rpartition('.')[2] for key in changed()
            if '_quantizer.' not in key} == {'running_mean', 'running_var'}


class Keeps(Hook):
    """A hook of a user's own, with a copy that averages nothing."""

    def before_train(self, runner):
        self.ema_model = copy.deepcopy(runner.model)


def test_hooks_of_ones_own_may_have_an_ema_model(make_runner):
    runner = make_runner('resnet', dict(
        type='GDRQHook', bn_batches=1, quantization=LSQ))
    runner.register_hook(Keeps())
    runner.train()
    assert not [*averaging_hooks(runner)]


class Semi(BaseModel):
    """As a semi-supervised detector: a student, and a teacher that is frozen
    when it is built."""

    def __init__(self, build):
        super().__init__()
        self.student, self.teacher = build(), build()
        self.teacher.eval().requires_grad_(False)

    def forward(self, inputs):
        return self.student(inputs), self.teacher(inputs)


def test_no_gradient_trains_what_a_frozen_teacher_learns(build_model):
    model = Semi(lambda: build_model('resnet'))
    model.student.backbone.conv1.requires_grad_(False)  # a frozen stage
    gdrq_mm.quantize_(model, LSQ)
    average_what_was_added(model)
    learned = learned_parameters(get_state(model))
    assert len(learned) == 2 * 54
    assert all(name.startswith('student.') for name in learned)
    trained = {name for name, each in model.named_parameters()
               if each.requires_grad}
    assert all(name.startswith('student.') for name in trained)
    assert 'student.backbone.conv1.input_quantizer.step.ratio' in trained
