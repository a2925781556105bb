import copy
import logging
from collections import defaultdict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.conv_ws import ConvWS2d
from mmcv.ops import DeformConv2d, ModulatedDeformConv2dPack
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner.checkpoint import load_checkpoint, save_checkpoint
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.functional import expand_clip, num_levels
from gdrq_mm.layers import QuantLayer, QuantReLU
from gdrq_mm.training import get_state

NAMES = ['faster_rcnn', 'pspnet', 'resnet']
CLASSES = dict(faster_rcnn='FasterRCNN', pspnet='EncoderDecoder',
               resnet='ImageClassifier')
QUANTIZATION = dict(weight=dict(bits=4), activation=dict(bits=4))


class Parts(nn.ModuleDict):
    """A model whose parts are read by name."""


def as_quantized(cfg, quantization=QUANTIZATION):
    """What a published config writes over its base."""
    cfg.merge_from_dict(dict(model=dict(
        type='QuantizedModel', architecture=cfg.model.type,
        quantization=quantization)))
    return cfg


def train_step(model, batch, lr=0.01):
    model.train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr)
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    optimizer.step()
    return loss


@torch.no_grad()
def features(model, batch):
    model.eval()
    data = model.data_preprocessor(copy.deepcopy(batch), False)
    out = model(data['inputs'], data['data_samples'], mode='tensor')
    return [x for x in flatten(out)]


def flatten(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from flatten(item)


@pytest.mark.parametrize('name', NAMES)
def test_is_an_object_of_the_architectures_class_with_outputs_of_quantize_(
        name, load_config, build_model, load_batch):
    base = build_model(name)
    plain_class = type(base)
    quantize_(base, QUANTIZATION)
    model = build_model(as_quantized(load_config(name)))
    assert type(model) is plain_class
    assert type(model).__name__ == CLASSES[name]
    assert model.state_dict().keys() == base.state_dict().keys()
    for one in (base, model):
        torch.manual_seed(1)  # samplers and dropout
        train_step(one, load_batch(name))
    test_batch = load_batch(name, 'test')
    pairs = list(zip(features(model, test_batch), features(base, test_batch)))
    assert pairs
    for ours, expected in pairs:
        assert torch.equal(ours, expected)


@pytest.mark.parametrize('name', NAMES)
def test_builds_in_the_scope_of_each_package(name, load_config):
    cfg = as_quantized(load_config(name))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    assert get_state(model) is not None
    # Without a default scope, the prefix of the package says it.
    DefaultScope._instance_dict.clear()
    cfg.model.architecture = f'{cfg.default_scope}.{cfg.model.architecture}'
    cfg.model._scope_ = cfg.default_scope
    assert get_state(MODELS.build(cfg.model)) is not None


def test_cfg_options_reach_the_architecture_and_the_quantization(load_config):
    cfg = as_quantized(load_config('faster_rcnn'))
    cfg.merge_from_dict({
        'model.backbone.depth': 101,
        'model.backbone.frozen_stages': -1,
        'model.quantization.weight.bits': 2,
        'model.quantization.rules': [
            dict(match='backbone.conv1', weight=dict(bits=8))]})
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    assert len(model.backbone.layer3) == 23
    assert model.backbone.conv1.weight.requires_grad
    assert model.backbone.conv1.weight_quantizer.bits == 8
    assert model.backbone.layer1[0].conv1.weight_quantizer.bits == 2


def messages_while(action):
    """Warnings that mmengine logs while ``action`` runs."""
    records = []

    class Handler(logging.Handler):

        def emit(self, record):
            if record.levelno >= logging.WARNING:
                records.append(record.getMessage())

    logger, handler = MMLogger.get_current_instance(), Handler()
    logger.addHandler(handler)
    try:
        action()
    finally:
        logger.removeHandler(handler)
    return '\n'.join(records)


@pytest.mark.parametrize('name', NAMES)
def test_float_checkpoint_loads_without_a_word_about_missing_keys(
        name, load_config, build_model, tmp_path, capsys):
    base = build_model(name, seed=3)
    path = str(tmp_path / 'float.pth')
    save_checkpoint(dict(state_dict=base.state_dict()), path)
    model = build_model(as_quantized(load_config(name)), seed=4)
    logged = messages_while(lambda: load_checkpoint(model, path))
    printed = ''.join(capsys.readouterr())
    for text in (logged, printed):
        assert 'missing' not in text and 'unexpected' not in text, text
    for key, value in base.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_pretrained_backbone_loads_without_a_word_about_missing_keys(
        load_config, build_model, tmp_path, capsys):
    """``init_cfg`` loads a part of the model, after its conversion."""
    base = build_model('faster_rcnn', seed=3)
    path = str(tmp_path / 'backbone.pth')
    save_checkpoint(dict(state_dict=base.backbone.state_dict()), path)
    cfg = as_quantized(load_config('faster_rcnn'))
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=path)
    models = []
    logged = messages_while(lambda: models.append(build_model(cfg, seed=4)))
    printed = ''.join(capsys.readouterr())
    for key, value in base.backbone.state_dict().items():
        assert torch.equal(models[0].backbone.state_dict()[key], value), key
    for text in (logged, printed):
        assert 'missing' not in text and 'unexpected' not in text, text


@pytest.mark.parametrize('name', NAMES)
def test_relu_site_has_three_thresholds_in_each_bottleneck(name, build_model):
    model = build_model(name)
    quantize_(model, dict(activation=dict(bits=4, site='relu')))
    blocks = [block for stage in range(1, 5)
              for block in getattr(model.backbone, f'layer{stage}')]
    assert len(blocks) == 16
    for block in blocks:
        assert len(block.relu.site_quantizers) == 3


def test_each_site_of_a_bottleneck_sees_its_own_call(build_model, load_batch):
    """Fed with known scales, the three thresholds follow the three calls."""
    model = build_model('resnet')
    quantize_(model, dict(activation=dict(
        bits=4, threshold='nonzero', k=1., site='relu')))
    block = model.backbone.layer2[1]
    outputs = []
    block.relu.register_forward_hook(
        lambda module, args, output: outputs.append(F.relu(args[0])))
    train_step(model, load_batch('resnet'), lr=0.)
    assert len(outputs) == 3
    for quantizer, output in zip(block.relu.site_quantizers, outputs):
        mean = output[output > 0].mean()
        assert torch.isclose(quantizer.clip, mean, rtol=1e-5)
    assert len({float(q.clip) for q in block.relu.site_quantizers}) == 3


def test_input_site_has_one_threshold_a_layer_and_none_in_relus(build_model):
    model = build_model('resnet')
    quantize_(model, QUANTIZATION)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 53
    assert all(conv.input_quantizer is not None for conv in convs)
    assert len({id(conv.input_quantizer) for conv in convs}) == 53
    assert not any(isinstance(m, QuantReLU) for m in model.modules())


@pytest.mark.parametrize('site', ['input', 'relu'])
def test_layers_that_heads_share_over_levels_have_one_threshold(
        site, load_config, build_model, load_batch):
    model = build_model('faster_rcnn')
    quantize_(model, dict(activation=dict(bits=4, threshold='nonzero',
                                          site=site)))
    levels = []
    rpn_conv = model.rpn_head.rpn_conv
    rpn_conv.register_forward_hook(
        lambda module, args, output: levels.append(args[0].detach()))
    train_step(model, load_batch('faster_rcnn'), lr=0.)
    assert len(levels) == 5
    quantizer = rpn_conv.input_quantizer
    assert int(quantizer.num_updates) == 1
    total = sum(float(x.abs().sum()) for x in levels)
    count = sum(x.numel() for x in levels)
    k = quantizer.k_of(bool(quantizer.signed))
    assert float(quantizer.clip) == pytest.approx(k * total / count, rel=1e-4)


@pytest.mark.parametrize('site', ['input', 'relu'])
def test_relus_of_a_retina_head_have_one_threshold(site):
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = MODELS.build(dict(
            type='RetinaHead', num_classes=3, in_channels=8, feat_channels=8,
            stacked_convs=2))
    model = Parts(dict(head=head))
    quantize_(model, dict(activation=dict(bits=4, site=site)))
    for convs in (head.cls_convs, head.reg_convs):
        for module in convs:
            if site == 'relu':
                assert len(module.activate.site_quantizers) == 1
            assert module.conv.input_quantizer is not None


class Recorder:
    """Every call of conv2d and linear: the tensors that really reach it."""

    def __init__(self, monkeypatch, model):
        self.calls = defaultdict(list)
        self.running = []
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_pre_hook(partial(self.enter, name))
                module.register_forward_hook(self.leave)
        for function in ('conv2d', 'linear'):
            monkeypatch.setattr(F, function, self.wrap(getattr(F, function)))

    def enter(self, name, *_):
        self.running.append(name)

    def leave(self, *_):
        self.running.pop()

    def wrap(self, function):

        def call(x, weight, *args, **kwargs):
            name = self.running[-1] if self.running else None
            # Quantized operands live only as long as the call.
            self.calls[name].append((x.clone(), weight.clone()))
            return function(x, weight, *args, **kwargs)

        return call


def is_on_grid(x, scale, bits, signed):
    codes = (x / scale).round()
    top = num_levels(bits, signed)
    low = -top if signed else 0
    return (torch.equal(codes * scale, x) and codes.min() >= low
            and codes.max() <= top)


@pytest.mark.parametrize('site', ['input', 'relu'])
@pytest.mark.parametrize('name', NAMES)
def test_what_reaches_conv2d_and_linear_is_on_the_grid(
        name, site, build_model, load_batch, monkeypatch):
    bits = 4
    model = build_model(name)
    quantize_(model, dict(
        weight=dict(bits=bits, group_size=4),
        activation=dict(bits=bits, site=site)))
    for _ in range(2):
        train_step(model, load_batch(name))
    model.eval()
    recorder = Recorder(monkeypatch, model)
    with torch.no_grad():
        model.test_step(load_batch(name, 'test'))
    monkeypatch.undo()
    layers = {name: layer for name, layer in model.named_modules()
              if isinstance(layer, QuantLayer)}
    skipped = {name for name in layers if name.startswith('auxiliary_head')}
    assert recorder.calls.keys() == layers.keys() - skipped
    relu_scales = [
        q.clip / num_levels(bits, False) for module in model.modules()
        if isinstance(module, QuantReLU) for q in module.site_quantizers]
    not_own = 0
    for layer_name, calls in recorder.calls.items():
        layer = layers[layer_name]
        quantizer = layer.input_quantizer
        signed = bool(quantizer.signed)
        for x, weight in calls:
            assert x.unique().numel() <= 2**bits, layer_name
            own = quantizer.clip / num_levels(bits, signed)
            if not (quantizer.initialized
                    and is_on_grid(x, own, bits, signed)):
                not_own += 1
                assert any(is_on_grid(x, scale, bits, False)
                           for scale in relu_scales), layer_name
            clip = expand_clip(layer.weight_quantizer.clip, weight, 4)
            assert is_on_grid(
                weight, (clip / num_levels(bits)).expand_as(weight), bits,
                True), layer_name
            for group in weight.split(4):
                assert group.unique().numel() <= 2**bits - 1, layer_name
    if site == 'input':
        assert not_own == 0
    else:  # most layers read a ReLU
        assert not_own > len(layers) / 3


@pytest.mark.parametrize('name', NAMES)
def test_each_layer_has_the_number_of_levels_of_its_own_bits(
        name, build_model, load_batch, monkeypatch):
    model = build_model(name)
    first = 'backbone.stem.0' if name == 'pspnet' else 'backbone.conv1'
    quantize_(model, dict(
        weight=dict(bits=2), activation=dict(bits=2),
        rules=[dict(match=first, weight=dict(bits=8),
                    activation=dict(bits=8))]))
    train_step(model, load_batch(name))
    model.eval()
    recorder = Recorder(monkeypatch, model)
    with torch.no_grad():
        model.test_step(load_batch(name, 'test'))
    monkeypatch.undo()
    for layer_name, calls in recorder.calls.items():
        for x, weight in calls:
            assert x.unique().numel() <= (256 if layer_name == first else 4)
            if layer_name != first:
                assert weight[:4].unique().numel() <= 4
    x, weight = recorder.calls[first][0]
    assert x.unique().numel() > 4 and weight[:4].unique().numel() > 4


def test_frozen_stages_get_thresholds_and_keep_their_weights(
        build_model, load_batch):
    """mmdet keeps stem and first stage in eval mode while it trains."""
    model = build_model('faster_rcnn')
    quantize_(model, QUANTIZATION)
    before = model.backbone.layer1[0].conv1.weight.clone()
    trained = model.backbone.layer2[0].conv1.weight.clone()
    train_step(model, load_batch('faster_rcnn'))
    assert not model.backbone.layer1[0].conv2.training
    for layer in (model.backbone.conv1, model.backbone.layer1[0].conv2):
        assert not layer.weight.requires_grad
        assert layer.input_quantizer.initialized
        assert float(layer.weight_quantizer.clip.min()) > 0
    assert torch.equal(model.backbone.layer1[0].conv1.weight, before)
    assert not torch.equal(model.backbone.layer2[0].conv1.weight, trained)


class SquaredInput(nn.Conv2d):

    def forward(self, x):
        return super().forward(x * x)


def test_convolutions_of_mmcv_are_quantized_and_unknown_ones_stay_float():
    model = Parts(dict(
        deform=DeformConv2d(4, 4, 3),
        pack=ModulatedDeformConv2dPack(4, 4, 3),
        standardized=ConvWS2d(4, 4, 3),
        transposed=nn.ConvTranspose2d(4, 4, 3),
        unknown=SquaredInput(4, 4, 3),
        plain=nn.Conv2d(4, 4, 3)))
    report = quantize_(model, QUANTIZATION)
    plans = {plan.name: plan for plan in report.layers}
    for name in ('deform', 'pack', 'pack.conv_offset', 'standardized',
                 'transposed', 'plain'):
        assert plans[name].quantized
    assert not plans['unknown'].quantized
    assert 'SquaredInput is a Conv2d that may compute something else' in \
        plans['unknown'].reason
    assert 'SquaredInput' in str(report)


def test_deformable_backbone_trains_quantized(
        load_config, build_model, load_batch):
    cfg = load_config('faster_rcnn')
    cfg.model.backbone.update(
        dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, False, False, True))
    model = build_model(cfg)
    report = quantize_(model, QUANTIZATION)
    plans = {plan.name: plan for plan in report.layers}
    assert plans['backbone.layer4.0.conv2'].quantized
    assert plans['backbone.layer4.0.conv1'].quantized
    before = model.backbone.layer4[0].conv2.weight.clone()
    for _ in range(2):  # residual branches start at zero, without gradient
        assert torch.isfinite(train_step(model, load_batch('faster_rcnn')))
    assert not torch.equal(model.backbone.layer4[0].conv2.weight, before)


def test_mmcvs_own_conv_and_linear_are_quantized():
    from mmcv.cnn.bricks import wrappers
    model = nn.Sequential(wrappers.Conv2d(3, 4, 3), nn.Flatten(),
                          wrappers.Linear(4, 2))
    report = quantize_(model, QUANTIZATION)
    assert [plan.quantized for plan in report.layers] == [True, True]
    assert model(torch.rand(1, 3, 3, 3)).shape == (1, 2)
