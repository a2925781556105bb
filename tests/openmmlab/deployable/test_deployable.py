"""OpenMMLab models as functions: equal to their own predictions, and as ONNX
files in ONNX Runtime."""
import importlib
import math

import onnx
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, to_integer
from gdrq_mm.deployable import evaluate, first_images, make_deployable
from gdrq_mm.export import onnx_check
from gdrq_mm.layers import QuantLayer
from gdrq_mm.merge import merge
from gdrq_mm.openmmlab.deployable.images import default_size, images_of
from gdrq_mm.openmmlab.deployable.models import Prepare
from gdrq_mm.openmmlab.scopes import example_batch

ENDS = dict(faster_rcnn='backbone.conv1', pspnet='backbone.stem.0',
            resnet='backbone.conv1')


@pytest.fixture
def calibrated(build_model, load_config):
    """Function name -> config and quantized model with thresholds."""

    def build(name, activation_bits=4):
        cfg = load_config(name)
        model = build_model(cfg)
        gdrq_mm.quantize_(model, dict(
            weight=dict(bits=4), activation=dict(bits=activation_bits),
            rules=[dict(match=ENDS[name], weight=dict(bits=8))]))
        with torch.no_grad():
            images = first_images(cfg, 2, 'test')
            gdrq_mm.calibrate(model, [
                lambda: _predict(model, image, sample)
                for image, sample in list(images_of(cfg, 'test'))[:2]])
        return cfg, model.eval(), images

    return build


def _predict(model, image, sample):
    return model.test_step(dict(inputs=[image[0]], data_samples=[sample])
                           if hasattr(model, 'roi_head')
                           or hasattr(model, 'decode_head') else
                           dict(inputs=image, data_samples=[sample]))


# Rounded activations make steps of the last bits of float sums.
@torch.no_grad()
@pytest.mark.parametrize('activation_bits, tolerance', [
    (None, dict(rtol=1e-5, atol=1e-5)), (4, dict(rtol=.02, atol=.02))])
@pytest.mark.parametrize('name', ['faster_rcnn', 'pspnet', 'resnet'])
def test_deployable_model_predicts_what_the_model_does(
        name, activation_bits, tolerance, calibrated):
    cfg, model, _ = calibrated(name, activation_bits)
    image, sample = next(images_of(cfg, 'test'))
    deployable = make_deployable(model).eval()
    outputs = deployable(image)
    if name == 'pspnet':  # mmseg enlarges logits to the original's size
        sample.set_metainfo(dict(ori_shape=sample.img_shape))
    predicted, = _predict(model, image, sample)
    if name == 'resnet':
        torch.testing.assert_close(outputs[0], predicted.pred_score,
                                   **tolerance)
    elif name == 'pspnet':
        classes = predicted.pred_sem_seg.data
        assert (outputs == classes).float().mean() > 0.999
    else:
        boxes, scores, labels = (each[0] for each in outputs)
        there = labels >= 0
        expected = predicted.pred_instances
        assert there.sum() == len(expected) > 0
        torch.testing.assert_close(scores[there], expected.scores,
                                   **tolerance)
        if activation_bits is not None:  # near scores may change places
            return
        assert torch.equal(labels[there], expected.labels)
        scale = torch.tensor(sample.scale_factor).repeat(2)
        torch.testing.assert_close(boxes[there] / scale, expected.bboxes,
                                   rtol=1e-4, atol=1e-2)


# Classifiers: tests/tools/test_export_onnx.py.
@torch.no_grad()
@pytest.mark.parametrize('name', ['faster_rcnn', 'pspnet'])
def test_onnx_runtime_gives_the_integer_model(name, calibrated, tmp_path):
    cfg, model, images = calibrated(name)
    deployable = make_deployable(model).eval()
    integer = to_integer(merge(deployable, images[0]), images[0], images)
    path = tmp_path / 'model.onnx'
    report = export_onnx(integer, images[0], path,
                         input_names=deployable.input_names,
                         output_names=deployable.output_names)
    assert len(report.kernels) == len(integer.calls) > 10
    assert not report.float_layers
    runner = onnx_check.session(path)
    assert [each.name for each in runner.get_outputs()] == list(
        deployable.output_names)
    metrics = evaluate(cfg, dict(
        integer=integer, onnxruntime=lambda x: onnx_check.run(runner, [x])),
        images[0].shape[2:])
    # An untrained detector is sure of nothing.
    assert not metrics['onnxruntime']['agreement'] <= 99
    metrics['integer'].pop('agreement'), metrics['onnxruntime'].pop(
        'agreement')
    assert metrics['integer'] == pytest.approx(
        metrics['onnxruntime'], abs=0.2, nan_ok=True)


def test_agreement_is_with_the_first_function(load_config):
    cfg = load_config('faster_rcnn')
    boxes = torch.tensor([[0., 0., 9., 9.], [4., 4., 8., 8.]])

    def found(number, score=.9):
        return lambda image: (boxes[None, :number],
                              torch.full((1, number), score),
                              torch.zeros(1, number, dtype=torch.long))

    metrics = evaluate(cfg, dict(both=found(2), one=found(1)), (64, 64))
    assert metrics['both']['agreement'] == 100
    assert metrics['one']['agreement'] == 50
    metrics = evaluate(cfg, dict(none=found(2, .2)), (64, 64))
    assert math.isnan(metrics['none']['agreement'])


@torch.no_grad()
def test_qonnx_executor_gives_every_layer_of_a_detector(
        build_model, load_config, tmp_path):
    """Every layer given its own input, at 2, 3, 4 and 8 bits; NMS and
    RoIAlign run as well."""
    cfg = load_config('faster_rcnn', **{
        'model.backbone.depth': 18, 'model.neck.in_channels': [4, 8, 16, 32]})
    model, image = build_model(cfg), first_images(cfg, 1, 'test')[0]
    parts = {'backbone.*': 2, 'neck.*': 3, 'rpn_head.*': 4, 'roi_head.*': 8}
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4), rules=[
            dict(match=name, weight=dict(bits=bits),
                 activation=dict(bits=bits)) for name, bits in parts.items()]))
    deployable = make_deployable(model).eval()
    gdrq_mm.calibrate(model, [lambda: deployable(image)])
    calls = []
    handles = [layer.register_forward_hook(lambda *args: calls.append(1))
               for layer in model.modules() if isinstance(layer, QuantLayer)]
    deployable(image)
    for handle in handles:
        handle.remove()
    path = tmp_path / 'model.onnx'
    report = export_onnx(deployable, image, path, 'qonnx',
                         output_names=deployable.output_names)
    assert len(report.layers) == len(calls) > 30
    assert max(report.layers.values()) <= 1e-5
    proto = onnx.load(str(path))
    values = {each.name: onnx.numpy_helper.to_array(each)
              for each in proto.graph.initializer}
    assert {int(values[node.input[3]]) for node in proto.graph.node
            if node.op_type == 'Quant'} == set(parts.values())


def test_parts_that_cannot_be_exported_are_named(build_model):
    model = build_model('faster_rcnn')
    model.test_cfg.rcnn.nms.type = 'soft_nms'
    with pytest.raises(ValueError, match="nms.type='soft_nms'"):
        make_deployable(model)
    for raw in (False, True):
        with pytest.raises(ValueError, match='Conv2d cannot be exported.* no '
                           'data_preprocessor: .*deploy.export_onnx'):
            make_deployable(nn.Conv2d(3, 4, 3), raw=raw)


def test_larger_images_than_exported_are_refused(load_config):
    with pytest.raises(ValueError, match='larger than the exported'):
        first_images(load_config('resnet'), 1, 'test', (16, 16))


def test_smaller_images_are_padded_with_what_normalizes_to_zero(load_config):
    image, = first_images(load_config('resnet'), 1, 'test')
    padded, = first_images(load_config('resnet'), 1, 'test', (40, 48))
    assert torch.equal(padded[..., :32, :32], image)
    expected = torch.tensor([103.53, 116.28, 123.675])  # BGR
    assert torch.equal(padded[0, :, 39, 47], expected)
    assert torch.equal(padded[0, :, 0, 32], expected)


def test_size_fits_every_image_where_the_ratio_is_kept(load_config):
    cfg, image = load_config('faster_rcnn'), torch.zeros(1, 3, 20, 40)
    pipeline = cfg.test_dataloader.dataset.pipeline
    resize = next(each for each in pipeline if each['type'] == 'Resize')
    resize.update(scale=(100, 60), keep_ratio=True)
    assert default_size(cfg, [image]) == (100, 100)
    resize.update(keep_ratio=False)
    assert default_size(cfg, [image, image.transpose(2, 3)]) == (40, 40)


@torch.no_grad()
def test_labels_that_do_not_exclude_each_other_have_sigmoid_scores(
        build_model):
    model = build_model('resnet', **{
        'model.head.type': 'MultiLabelLinearClsHead',
        'model.head.loss': dict(type='CrossEntropyLoss', use_sigmoid=True),
        'model.head.topk': 1}).eval()
    x = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    scores = make_deployable(model).eval()(x)
    expected, = model.test_step(dict(inputs=x, data_samples=None))
    torch.testing.assert_close(scores[0], expected.pred_score)
    model.head.__class__ = type('MyHead', (type(model.head), ), dict(
        _get_predictions=lambda self, *args: None))
    with pytest.raises(ValueError, match='head is a MyHead.*--raw'):
        make_deployable(model)
    raw = make_deployable(model, raw=True).eval()
    assert raw.names_for(x) == ('logits', )
    torch.testing.assert_close(raw(x)[0].sigmoid(), scores)


def segmentor(**changes):
    """A small segmentor whose second head refines what the first gives."""
    head = dict(in_channels=32, in_index=-1, channels=8, num_classes=3,
                dropout_ratio=0)
    cfg = dict(
        type='CascadeEncoderDecoder', num_stages=2,
        data_preprocessor=dict(type='SegDataPreProcessor', mean=[120.] * 3,
                               std=[60.] * 3, bgr_to_rgb=True),
        backbone=dict(type='ResNet', depth=18, base_channels=4),
        decode_head=[dict(head, type='FCNHead', num_convs=1),
                     dict(head, type='OCRHead', ocr_channels=8)],
        train_cfg=None, test_cfg=ConfigDict(mode='whole'))
    torch.manual_seed(0)
    cfg.update(changes)
    if cfg['type'] == 'EncoderDecoder':
        del cfg['num_stages']
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(cfg).eval()


@torch.no_grad()
@pytest.mark.parametrize('changes', [{}, dict(
    type='EncoderDecoder', decode_head=dict(
        type='FCNHead', in_channels=32, channels=8, num_classes=2,
        out_channels=1, threshold=.5, num_convs=1))])
def test_cascades_and_thresholds_predict_what_mmseg_does(
        changes, spread):
    batch = example_batch('mmseg', (64, 48))
    model = segmentor(**changes)
    spread(model, dict(conv_seg=2), lambda: model.test_step(batch))
    x = batch['inputs'][0][None]
    ours = make_deployable(model).eval()(x)
    expected, = model.test_step(batch)
    assert len(ours.unique()) > 1
    assert torch.equal(ours, expected.pred_sem_seg.data.long())
    raw = make_deployable(model, raw=True).eval()
    assert raw.names_for(x) == ('logits', )


def test_heads_of_several_tasks_have_an_output_each(build_model):
    model = build_model('resnet', **{'model.head': dict(
        _delete_=True, type='MultiTaskHead', task_heads=dict(
            shape=dict(type='LinearClsHead', num_classes=3, in_channels=128),
            colour=dict(type='LinearClsHead', num_classes=2,
                        in_channels=128)))})
    with pytest.raises(ValueError, match='MultiTaskHead.*--raw'):
        make_deployable(model)
    raw = make_deployable(model, raw=True).eval()
    assert raw.names_for(torch.zeros(1, 3, 32, 32)) == (
        'logits.shape', 'logits.colour')


def test_a_preprocessor_that_is_not_known_is_refused(build_model):
    model = build_model('resnet')
    model.data_preprocessor.__class__ = type('MyPreprocessor', (type(
        model.data_preprocessor), ), dict(forward=lambda self, data: data))
    for raw in (False, True):
        with pytest.raises(ValueError, match='data_preprocessor is a '
                           'MyPreprocessor.*wrap the model'):
            make_deployable(model, raw=raw)


@pytest.mark.parametrize('channels', [3, 4])
@pytest.mark.parametrize('name, options', [
    ('mmpretrain.ClsDataPreprocessor', dict(to_rgb=True)),
    ('mmseg.SegDataPreProcessor', dict(bgr_to_rgb=True, size=(8, 8))),
    ('mmseg.SegDataPreProcessor', dict(rgb_to_bgr=True, size=(8, 8)))])
def test_channels_are_reversed_where_the_package_does(name, options,
                                                      channels):
    scope, _, _ = name.partition('.')
    importlib.import_module(f'{scope}.models')  # registers it
    preprocessor = MODELS.build(dict(
        type=name, mean=[*range(10, 10 + channels)],
        std=[*range(1, 1 + channels)], **options))
    images = torch.randint(0, 256, (1, channels, 8, 8), dtype=torch.uint8)
    sample = example_batch(scope, (8, 8))['data_samples'][0]
    batch = preprocessor(dict(inputs=[images[0]], data_samples=[sample]))
    inputs = batch['inputs']
    torch.testing.assert_close(Prepare(preprocessor)(images), torch.stack(
        list(inputs)))
