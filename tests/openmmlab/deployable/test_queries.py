"""Detectors whose queries are the detections: those of mmdet's own test."""
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import gdrq_mm
from gdrq_mm.deploy import export_onnx, to_integer
from gdrq_mm.deployable import make_deployable
from gdrq_mm.export import onnx_check
from gdrq_mm.export.speed import export_float
from gdrq_mm.integer.graph import capture
from gdrq_mm.merge import merge
from gdrq_mm.openmmlab.scopes import example_batch

CONFIGS = dict(
    DETR='detr/detr_r50_8xb2-150e_coco.py',
    Conditional='conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    DAB='dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    Deformable='deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    DINO='dino/dino-4scale_r50_8xb2-12e_coco.py')
SIZE = (96, 64)
OTHER = (70, 150)


def build(name, spread):
    """A small detector of three classes whose scores differ."""
    cfg = Config.fromfile(
        Path(mmdet.__file__).parent / '.mim' / 'configs' / CONFIGS[name])
    model = cfg.model
    model.backbone.update(depth=18, init_cfg=None)
    model.neck.in_channels = [each // 4 for each in model.neck.in_channels]
    model.num_queries, model.bbox_head.num_classes = 12, 3
    model.encoder.num_layers = model.decoder.num_layers = 2
    model.test_cfg = dict(max_per_img=10)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(model).eval()
    model.init_weights()  # some are memory as it was
    return spread(model, dict(cls=1.5, reg_ffn=1), lambda: model.test_step(
        example_batch('mmdet', SIZE)))


def image():
    return example_batch('mmdet', SIZE)['inputs'][0][None]


def others():
    """Images of another batch and size."""
    return torch.randint(0, 256, (3, 3, *OTHER), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize('name', CONFIGS)
def test_detections_are_those_of_mmdet(name, spread):
    model = build(name, spread)
    deployable = make_deployable(model).eval()
    boxes, scores, labels = (each[0] for each in deployable(image()))
    expected = model.test_step(
        example_batch('mmdet', SIZE))[0].pred_instances
    assert len(labels) == 10 and scores.std() > 1e-4
    torch.testing.assert_close(boxes, expected.bboxes)
    torch.testing.assert_close(scores, expected.scores)
    assert torch.equal(labels, expected.labels)


@torch.no_grad()
@pytest.mark.parametrize('name', ['Deformable', 'DINO'])
def test_float_files_with_sampled_points_give_the_detections_of_mmdet(
        name, spread, tmp_path):
    """Sizes of levels, which mmdet computes in tensors, are numbers there."""
    model, x = build(name, spread), image()
    path = tmp_path / 'float.onnx'
    export_float(make_deployable(model).eval(), x, path)
    boxes, scores, labels = (torch.from_numpy(each[0]) for each in
                             onnx_check.run(onnx_check.session(path), [x]))
    expected = model.test_step(
        example_batch('mmdet', SIZE))[0].pred_instances
    torch.testing.assert_close(boxes, expected.bboxes, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(scores, expected.scores, rtol=1e-4, atol=1e-5)
    assert torch.equal(labels, expected.labels)


@pytest.mark.parametrize('dynamic', ['batch', 'size'])
def test_sampled_points_have_one_batch_and_size(dynamic, spread):
    deployable = make_deployable(build('Deformable', spread)).eval()
    with pytest.raises(RuntimeError, match=r'^encoder.layers.0.self_attn is a '
                       'MultiScale.*: leave out --dynamic'):
        capture(deployable, (image(), ), [dynamic])


@torch.no_grad()
@pytest.mark.parametrize('name, dynamic', [
    ('DETR', ['batch', 'size']), ('DINO', [])])
def test_onnx_runtime_gives_the_detections_of_the_integer_model(
        name, dynamic, spread, tmp_path):
    model, x = build(name, spread), image()
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    deployable = make_deployable(model).eval()
    gdrq_mm.calibrate(model, [lambda: deployable(x)])
    integer = to_integer(merge(deployable, x), x, dynamic=dynamic)
    last = dict(DETR='fc_cls', DINO='cls_branches.1')[name]
    assert {call.layer for call in integer.calls} >= {
        'backbone.conv1', f'bbox_head.{last}'}
    path = tmp_path / 'model.onnx'
    export_onnx(integer, x, path, dynamic=dynamic,
                output_names=deployable.output_names)
    runner = onnx_check.session(path)
    for images in (x, others()) if dynamic else (x, ):
        theirs = map(torch.from_numpy, onnx_check.run(runner, [images]))
        for mine, other in zip(integer(images), theirs):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize('name', ['DETR', 'Conditional'])
def test_graphs_of_any_batch_and_size_give_mmdets_detections(name, spread):
    model = build(name, spread)
    deployable = make_deployable(model).eval()
    graph = capture(deployable, (image(), ), ['batch', 'size'])
    sample, = example_batch('mmdet', OTHER)['data_samples']
    images = others()
    expected = model.test_step(dict(
        inputs=list(images), data_samples=[sample.clone() for _ in images]))
    for boxes, scores, labels, theirs in zip(*graph(images), expected):
        theirs = theirs.pred_instances
        torch.testing.assert_close(boxes, theirs.bboxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(scores, theirs.scores)
        assert torch.equal(labels, theirs.labels)


def test_heads_that_are_not_known_are_refused(spread):
    model = build('DETR', spread)
    model.bbox_head.__class__ = type('MyHead', (type(model.bbox_head), ), dict(
        predict_by_feat=lambda *args, layer_cls_scores=None: None))
    with pytest.raises(ValueError, match='bbox_head is a MyHead, whose '
                       'predict_by_feat.*--raw'):
        make_deployable(model)


@torch.no_grad()
def test_padding_that_mmdet_masks_is_refused_at_any_size(spread):
    """At the size of the example its mask is known."""
    model = build('DETR', spread)
    model.data_preprocessor.pad_size_divisor = 32
    size = (96, 70)
    image = example_batch('mmdet', size)['inputs'][0][None]
    deployable = make_deployable(model).eval()
    boxes, scores, labels = (each[0] for each in deployable(image))
    expected = model.test_step(
        example_batch('mmdet', size))[0].pred_instances
    torch.testing.assert_close(boxes, expected.bboxes)
    assert torch.equal(labels, expected.labels)
    for dynamic in ('batch', 'size'):
        with pytest.raises(RuntimeError, match=f'with dynamic {dynamic}'
                           '.* pad_size_divisor=32 .* set it to 1'):
            capture(deployable, (image, ), [dynamic])
