"""Two-stage detectors: boxes and masks of mmdet's own test."""
from pathlib import Path

import mmcv
import mmdet
import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from pycocotools.mask import area, encode, toBbox

import gdrq_mm
from gdrq_mm.deploy import export_onnx, to_integer
from gdrq_mm.deployable import evaluate, make_deployable
from gdrq_mm.export import onnx_check
from gdrq_mm.export.export import ExportReport
from gdrq_mm.export.speed import export_float
from gdrq_mm.integer.graph import capture
from gdrq_mm.merge import merge
from gdrq_mm.openmmlab.deployable.two_stage import paste
from gdrq_mm.openmmlab.scopes import example_batch

CONFIGS = dict(
    Faster='faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    Mask='mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    Cascade='cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    CascadeMask='cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py')
SIZE = (120, 96)  # no multiple of 32
OTHER = (100, 150)
STDS = dict(rpn_cls=2, rpn_reg=.3, fc_cls=2, fc_reg=1, conv_logits=2)


def _narrow(part):
    """Three classes, 32 channels, in all parts of a config."""
    for key, value in part.items():
        if isinstance(value, dict):
            _narrow(value)
        elif isinstance(value, list):
            for each in value:
                if isinstance(each, dict):
                    _narrow(each)
        elif key == 'num_classes':
            part[key] = 3
        elif value in (256, 1024) and 'channels' in key:
            part[key] = 32


def build(name, spread, regions=60):
    """A small detector of three classes whose scores differ."""
    cfg = Config.fromfile(
        Path(mmdet.__file__).parent / '.mim' / 'configs' / CONFIGS[name])
    cfg.model.backbone.update(depth=18, init_cfg=None)
    _narrow(cfg.model)
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    cfg.model.test_cfg.rpn.update(nms_pre=regions,
                                     max_per_img=regions)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model).eval()
    for key, value in model.named_buffers():
        if key.endswith('running_var'):
            value.fill_(.5)
    return spread(model, STDS, lambda: predicted(model))


def predicted(model):
    sample, = model.test_step(example_batch('mmdet', SIZE))
    return sample.pred_instances


def image():
    return example_batch('mmdet', SIZE)['inputs'][0][None]


def others():
    """Images of another batch and size."""
    return torch.randint(0, 256, (3, 3, *OTHER), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize('rows', [0, -1, 5])
def test_detections_of_any_number_are_those_of_mmdet(
        rows, check_detections, spread):
    """mmdet keeps all where the number is not positive."""
    model = build('Faster', spread)
    model.test_cfg.rcnn.max_per_img = rows
    theirs = predicted(model)
    ours = [each[0] for each in make_deployable(model).eval()(image())]
    assert int((ours[2] >= 0).sum()) == len(theirs) > 0
    check_detections(ours, theirs)


@pytest.mark.parametrize('stage, change, message', [
    ('rpn', dict(max_per_img=-1), 'max_per_img=-1, which is the number'),
    ('rpn', dict(nms=None), 'nms=None, which keeps all boxes'),
    ('rcnn', dict(nms=None), 'nms=None, which keeps all boxes')])
def test_test_cfgs_that_cannot_be_exported_are_refused(stage, change, message,
                                                       spread):
    model = build('Faster', spread)
    model.test_cfg[stage].update(change)
    with pytest.raises(ValueError, match=(
            f'test_cfg.{stage} has {message}.*--raw')):
        make_deployable(model)


@torch.no_grad()
@pytest.mark.parametrize('name', CONFIGS)
def test_detections_are_those_of_mmdet(
        name, check_detections, check_masks, spread):
    model = build(name, spread)
    deployable = make_deployable(model).eval()
    boxes, scores, labels, *masks = (each[0] for each in deployable(image()))
    expected = predicted(model)
    rows = check_detections((boxes, scores, labels), expected)
    assert len(deployable.output_names) == 3 + len(masks)
    assert len(masks) == ('Mask' in name)
    if masks:
        masks, = masks
        check_masks(masks[rows], boxes[rows], expected.masks)
        assert not masks[labels < 0].any()


@torch.no_grad()
@pytest.mark.parametrize('name', ['Cascade', 'CascadeMask'])
def test_the_float_file_of_a_cascade_gives_the_detections_of_mmdet(
        name, check_detections, check_masks, spread, tmp_path):
    model, x = build(name, spread, regions=20), image()
    path = tmp_path / 'float.onnx'
    export_float(make_deployable(model).eval(), x, path)
    boxes, scores, labels, *masks = (
        torch.from_numpy(each[0]) for each in onnx_check.run(
            onnx_check.session(path), [x]))
    expected = predicted(model)
    rows = check_detections((boxes, scores, labels), expected)
    assert len(masks) == ('Mask' in name)
    for each in masks:
        check_masks(each[rows], boxes[rows], expected.masks)


def coco_of(tmp_path, found, images):
    """Write images, and some of the detections as their ground truth."""
    annotations = []
    for number, (image, instances) in enumerate(zip(images, found)):
        mmcv.imwrite(image, str(tmp_path / f'{number}.png'))
        for index in range(0, len(instances), 3):
            mask = instances.masks[index].numpy()
            if index % 2:  # not quite what is found
                mask = np.roll(mask, 3, axis=1)
            rle = encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(dict(
                id=len(annotations) + 1, image_id=number, iscrowd=0,
                category_id=int(instances.labels[index]),
                bbox=toBbox(rle).tolist(), area=float(area(rle)),
                segmentation=dict(rle, counts=rle['counts'].decode())))
    height, width = SIZE
    mmengine.dump(dict(
        images=[dict(id=number, file_name=f'{number}.png', height=height,
                     width=width) for number in range(len(images))],
        categories=[dict(id=index, name=name)
                    for index, name in enumerate('abc')],
        annotations=[each for each in annotations if each['area'] > 0]),
        tmp_path / 'found.json')
    return str(tmp_path / 'found.json')


@torch.no_grad()
def test_masks_are_evaluated_as_mmdet_evaluates_them(spread, tmp_path):
    model = build('Mask', spread)
    images = [np.random.default_rng(seed).integers(
        0, 256, (*SIZE, 3), dtype=np.uint8) for seed in range(3)]
    found = [model.test_step(dict(
        inputs=[torch.from_numpy(each).permute(2, 0, 1)],
        data_samples=example_batch('mmdet', SIZE)['data_samples'])
        )[0].pred_instances for each in images]
    file = coco_of(tmp_path, found, images)
    cfg = Config.fromfile(
        Path(mmdet.__file__).parent / '.mim' / 'configs' / CONFIGS['Mask'])
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.test_dataloader.dataset.update(
        data_root='', ann_file=file, data_prefix=dict(img=str(tmp_path)),
        metainfo=dict(classes=tuple('abc')), pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=SIZE[::-1], keep_ratio=True),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs', meta_keys=(
                'img_id', 'img_path', 'ori_shape', 'img_shape',
                'scale_factor'))])
    cfg.test_evaluator.ann_file = file
    with DefaultScope.overwrite_default_scope('mmdet'):
        loader = Runner.build_dataloader(cfg.test_dataloader)
        evaluator = Evaluator(cfg.test_evaluator)
        evaluator.dataset_meta = loader.dataset.metainfo
        for batch in loader:
            evaluator.process(model.test_step(batch), batch)
        theirs = evaluator.evaluate(len(loader.dataset))
        deployable = make_deployable(model).eval()
        ours = evaluate(cfg, dict(model=deployable), SIZE)['model']
    for kind in ('bbox', 'segm'):
        assert .05 < theirs[f'coco/{kind}_mAP'] < .95
        for key in ('mAP', 'mAP_50', 'mAP_75'):
            assert ours[f'coco/{kind}_{key}'] == pytest.approx(
                theirs[f'coco/{kind}_{key}'], abs=.02), (kind, key)


@torch.no_grad()
@pytest.mark.parametrize('name', ['Mask', 'CascadeMask'])
def test_onnx_runtime_gives_boxes_and_masks_of_the_integer_model(
        name, spread, tmp_path):
    model, x = build(name, spread, regions=8), image()
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    deployable = make_deployable(model).eval()
    gdrq_mm.calibrate(model, [lambda: deployable(x)])
    dynamic = ['batch']
    integer = to_integer(merge(deployable, x), x, dynamic=dynamic)
    path = tmp_path / 'model.onnx'
    report = export_onnx(integer, x, path, dynamic=dynamic,
                         output_names=deployable.output_names)
    assert len(report.others) == 2
    assert len(report.kernels) == len(integer.calls) > 40
    assert all('ConvTranspose2d' in reason
               for reason in report.float_layers.values())
    pair = torch.cat([x, x.flip(3)])
    ours = integer(pair)
    boxes, scores, labels, *masks = map(torch.from_numpy, onnx_check.run(
        onnx_check.session(path), [pair]))
    assert ((ours[2] >= 0).sum(1) > 3).all()
    for mine, other in zip(ours, (boxes, scores, labels)):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)
    assert len(masks) == ('Mask' in name)
    # Regions are sampled at places of float precision: codes may differ.
    for mine, other in zip(ours[3:], masks):
        assert (other - mine).abs().mean() < 1e-3


@torch.no_grad()
def test_an_onnx_file_of_any_batch_and_size(spread, tmp_path):
    model, x = build('Faster', spread, regions=8), image()
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    deployable = make_deployable(model).eval()
    gdrq_mm.calibrate(model, [lambda: deployable(x)])
    dynamic = ['batch', 'size']
    integer = to_integer(merge(deployable, x), x, dynamic=dynamic)
    path = tmp_path / 'model.onnx'
    export_onnx(integer, x, path, dynamic=dynamic,
                output_names=deployable.output_names)
    report = ExportReport(path, 'qdq')
    onnx_check.check_qdq(path, integer, (others(), ), report)
    equal, total = report.equal_codes()
    assert equal == total > 0
    # A value at the boundary of two codes may come out as either, by the
    # CPU's instructions, and changes what is found in its image.
    ours = integer(others())
    assert ((ours[2] >= 0).sum(1) > 3).all()
    theirs = map(torch.from_numpy, onnx_check.run(
        onnx_check.session(path), [others()]))
    close = [torch.isclose(mine, other, rtol=1e-4, atol=1e-3).flatten(1)
             for mine, other in zip(ours, theirs)]
    assert all(each.float().mean() > .9 for each in close)
    assert torch.cat(close, 1).all(1).sum() >= len(ours[0]) - 1


@torch.no_grad()
@pytest.mark.parametrize('name', ['Faster', 'CascadeMask'])
def test_a_graph_of_any_batch_and_size_gives_the_detections_of_mmdet(
        name, check_detections, check_masks, spread):
    model = build(name, spread)
    deployable = make_deployable(model).eval()
    graph = capture(deployable, (image(), ), ['batch', 'size'])
    images = others()
    sample, = example_batch('mmdet', OTHER)['data_samples']
    expected = model.test_step(dict(
        inputs=list(images), data_samples=[sample.clone() for _ in images]))
    found = graph(images)
    assert all(len(each) == len(images) for each in found)
    for *ours, theirs in zip(*found, expected):
        theirs = theirs.pred_instances
        rows = check_detections(ours[:3], theirs)
        for masks in ours[3:]:
            check_masks(masks[rows], ours[0][rows], theirs.masks)


@pytest.mark.parametrize('part, kind, message', [
    ('rpn_head', 'GARPNHead', 'rpn_head is a GARPNHead, whose predict '),
    ('roi_head', 'MyRoIHead', 'roi_head is a MyRoIHead'),
    ('roi_head.bbox_head', 'MyHead', 'roi_head.bbox_head is a MyHead'),
    ('roi_head.mask_head', 'MyMask', 'roi_head.mask_head is a MyMask')])
def test_parts_that_predict_in_another_way_are_named(
        part, kind, message, spread):
    model = build('Mask', spread)
    changed = model.get_submodule(part)
    other = {'roi_head': 'predict_bbox', 'rpn_head': 'predict'}.get(
        part, 'predict_by_feat')
    changed.__class__ = type(kind, (type(changed), ), {
        other: lambda *args, **kwargs: None})
    with pytest.raises(ValueError, match=f'{message}.*--raw'):
        make_deployable(model)
    raw = make_deployable(model, raw=True).eval()
    # What another ``predict`` makes of the outputs is not known.
    assert raw.names_for(image())[0] == (
        'outputs.0.0' if part == 'rpn_head' else 'cls_scores.0')


def test_cascades_that_refine_in_another_way_are_named():
    model = build('Cascade', lambda model, *_: model)
    roi_head = model.roi_head
    roi_head.__class__ = type('MyCascade', (type(roi_head), ), dict(
        _refine_roi=lambda *args, **kwargs: None))
    with pytest.raises(ValueError, match='roi_head is a MyCascade, whose '
                       '_refine_roi is not known.*--raw'):
        make_deployable(model)


@torch.no_grad()
def test_masks_are_pasted_as_mmdet_does():
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
    masks = torch.rand(3, 28, 28)
    boxes = torch.tensor([[3.2, 4.7, 30.1, 20.9], [-5., 0., 50., 40.],
                          [10., 10., 11., 30.]])
    expected, _ = _do_paste_mask(masks[:, None], boxes, 40, 50, False)
    torch.testing.assert_close(paste(masks, boxes, (40, 50)), expected)
