"""Detectors with learned regions: boxes and masks of mmdet's own test."""
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
from gdrq_mm.export.export import ExportReport
from gdrq_mm.export.speed import export_float
from gdrq_mm.integer.graph import capture
from gdrq_mm.merge import merge
from gdrq_mm.openmmlab.scopes import example_batch

CONFIGS = dict(Sparse='sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
               QueryInst='queryinst/queryinst_r50_fpn_1x_coco.py')
SIZE = (120, 96)  # no multiple of 32
OTHER = (100, 150)
REGIONS = 16  # as many as are found: mmdet finds masks for no other number
STAGES = 2


def build(name, spread):
    """A small detector of three classes whose scores differ."""
    model = Config.fromfile(
        Path(mmdet.__file__).parent / '.mim' / 'configs' / CONFIGS[name]).model
    model.backbone.update(depth=18, init_cfg=None)
    model.neck.in_channels = [64, 128, 256, 512]
    model.rpn_head.num_proposals = REGIONS
    model.roi_head.update(num_stages=STAGES,
                          stage_loss_weights=[1] * STAGES)
    for part in ('bbox_head', 'mask_head'):
        for head in model.roi_head.get(part, []):
            head.num_classes = 3
        if part in model.roi_head:
            model.roi_head[part] = model.roi_head[part][:STAGES]
    model.train_cfg.rcnn = model.train_cfg.rcnn[:STAGES]
    model.test_cfg.rcnn.max_per_img = REGIONS
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(model).eval()
    for key, value in model.named_buffers():
        if key.endswith('running_var'):
            value.fill_(.5)
    # As they are after training: all over the image, of all sizes.
    boxes = model.rpn_head.init_proposal_bboxes.weight.data
    boxes.copy_(.2 + .6 * torch.rand_like(boxes))
    return spread(model, dict(fc_cls=2, fc_reg=.3, conv_logits=2),
                  lambda: predicted(model))


def predicted(model):
    sample, = model.test_step(example_batch('mmdet', SIZE))
    return best_first(sample.pred_instances)


def best_first(found):
    """mmdet leaves them in any order."""
    return found[found.scores.argsort(descending=True)]


def image():
    return example_batch('mmdet', SIZE)['inputs'][0][None]


@torch.no_grad()
@pytest.mark.parametrize('name', CONFIGS)
def test_detections_are_those_of_mmdet(
        name, check_detections, check_masks, spread):
    model = build(name, spread)
    deployable = make_deployable(model).eval()
    boxes, scores, labels, *masks = (each[0] for each in deployable(image()))
    expected = predicted(model)
    rows = check_detections((boxes, scores, labels), expected)
    assert len(scores) == REGIONS and (scores.diff() <= 0).all()
    assert len(deployable.output_names) == 3 + len(masks)
    assert len(masks) == (name == 'QueryInst')
    for each in masks:
        check_masks(each[rows], boxes[rows], expected.masks)


@torch.no_grad()
@pytest.mark.parametrize('name', CONFIGS)
def test_a_graph_of_any_batch_and_size_gives_the_detections_of_mmdet(
        name, check_detections, check_masks, spread):
    model = build(name, spread)
    graph = capture(make_deployable(model).eval(), (image(), ),
                    ['batch', 'size'])
    images = torch.randint(0, 256, (3, 3, *OTHER), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(1))
    sample, = example_batch('mmdet', OTHER)['data_samples']
    expected = model.test_step(dict(
        inputs=list(images), data_samples=[sample.clone() for _ in images]))
    found = graph(images)
    for *ours, theirs in zip(*found, expected):
        theirs = best_first(theirs.pred_instances)
        rows = check_detections(ours[:3], theirs)
        for masks in ours[3:]:
            check_masks(masks[rows], ours[0][rows], theirs.masks)


@torch.no_grad()
@pytest.mark.parametrize('name', CONFIGS)
def test_the_float_file_gives_the_detections_of_mmdet(
        name, check_detections, check_masks, spread, tmp_path):
    model, x = build(name, spread), image()
    path = tmp_path / 'float.onnx'
    export_float(make_deployable(model).eval(), x, path)
    boxes, scores, labels, *masks = (
        torch.from_numpy(each[0]) for each in onnx_check.run(
            onnx_check.session(path), [x]))
    expected = predicted(model)
    rows = check_detections((boxes, scores, labels), expected)
    assert len(masks) == (name == 'QueryInst')
    for each in masks:
        check_masks(each[rows], boxes[rows], expected.masks)


@torch.no_grad()
def test_all_codes_of_a_file_are_those_of_the_integer_model(spread, tmp_path):
    """Not its boxes: a code that rounding changes moves a region, of which
    an untrained second stage makes another one."""
    model, x = build('QueryInst', spread), image()
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    deployable = make_deployable(model).eval()
    gdrq_mm.calibrate(model, [lambda: deployable(x)])
    dynamic = ['batch']
    integer = to_integer(merge(deployable, x), x, dynamic=dynamic)
    path = tmp_path / 'model.onnx'
    found = export_onnx(integer, x, path, dynamic=dynamic,
                        output_names=deployable.output_names)
    assert len(found.kernels) == len(integer.calls) > 50
    report = ExportReport(path, 'qdq')
    onnx_check.check_qdq(path, integer, (torch.cat([x, x.flip(3)]), ), report)
    equal, total = report.equal_codes()
    assert equal == total > 0


@pytest.mark.parametrize('part, method, message', [
    ('roi_head', 'predict_bbox', 'roi_head is a Mine, whose predict_bbox'),
    ('roi_head.bbox_head.1', 'forward',
     'roi_head.bbox_head is a Mine, whose forward'),
    ('roi_head.mask_head.1', 'predict_by_feat',
     'roi_head.mask_head is a Mine, whose predict_by_feat'),
    ('roi_head.mask_roi_extractor.0', 'forward',
     'roi_head.mask_roi_extractor is a Mine, whose forward')])
def test_parts_that_predict_in_another_way_are_named(part, method, message):
    model = build('QueryInst', lambda model, *_: model)
    changed = model.get_submodule(part)
    changed.__class__ = type('Mine', (type(changed), ), {
        method: lambda *args, **kwargs: None})
    # Without ``mode='tensor'`` of images alone there is no other way out.
    with pytest.raises(ValueError, match='^rpn_head is a EmbeddingRPNHead.*'
                       'where all parts are known') as error:
        make_deployable(model)
    assert str(error.value.__cause__).startswith(message)
