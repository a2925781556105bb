"""Single-stage detectors: boxes of mmdet's own test, and of ONNX Runtime."""
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
from gdrq_mm.integer.graph import capture
from gdrq_mm.merge import merge
from gdrq_mm.openmmlab.scopes import example_batch

CONFIGS = dict(
    RetinaNet='retinanet/retinanet_r18_fpn_1x_coco.py',
    FCOS='fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    ATSS='atss/atss_r50_fpn_1x_coco.py',
    GFL='gfl/gfl_r50_fpn_1x_coco.py',
    VFNet='vfnet/vfnet_r50_fpn_1x_coco.py',  # deformable convolutions
    YOLOv3='yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py',
    SSD='ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    YOLOX='yolox/yolox_tiny_8xb8-300e_coco.py',
    RTMDet='rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
# Of scores on two levels; where they end at 1.0, which comes first is chance.
SPREAD = dict.fromkeys(CONFIGS, .5) | dict(YOLOX=.05, SSD=.1)
SIZE = (120, 96)  # no multiple of 32
OTHER = (33, 150)
EVEN = (128, 96)  # RTMDet pads in its pipeline, not in the model


def two_levels(model):
    """The head of a config on two levels of a short and narrow ResNet."""
    model.backbone = dict(
        type='ResNet', depth=18, base_channels=8, num_stages=2,
        strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
    model.neck = dict(type='FPN', in_channels=[8, 16], out_channels=32,
                      num_outs=2)
    head, strides = model.bbox_head, [4, 8]
    if head.type == 'SSDHead':  # a third level, behind the second
        model.neck = dict(
            type='SSDNeck', in_channels=(8, 16), out_channels=(8, 16, 16),
            level_strides=(2, ), level_paddings=(1, ), l2_norm_scale=20)
        head.in_channels = (8, 16, 16)
        head.anchor_generator.update(
            strides=[4, 8, 16], ratios=[[2, 3]] * 3, min_sizes=[16, 32, 64],
            max_sizes=[32, 64, 96])
        return
    if head.type == 'YOLOV3Head':  # from coarse to fine
        model.neck = dict(type='YOLOV3Neck', num_scales=2,
                          in_channels=[16, 8], out_channels=[16, 8])
        head.update(in_channels=[16, 8], out_channels=[16, 8],
                    featmap_strides=strides[::-1])
        head.anchor_generator.update(
            strides=strides[::-1],
            base_sizes=head.anchor_generator.base_sizes[1:])
        return
    if head.type == 'RTMDetSepBNHead':  # its neck doubles and joins levels
        model.neck = dict(type='CSPNeXtPAFPN', in_channels=[8, 16],
                          out_channels=32, num_csp_blocks=1)
        model.data_preprocessor.pad_size_divisor = 32
    head.update(in_channels=32, feat_channels=32, stacked_convs=1)
    if head.type in ('FCOSHead', 'VFNetHead'):
        head.update(strides=strides, regress_ranges=((-1, 64), (64, 1e8)))
        if head.type == 'VFNetHead':
            head.anchor_generator = dict(
                type='AnchorGenerator', ratios=[1.], octave_base_scale=8,
                scales_per_octave=1, center_offset=0., strides=strides)
    elif head.type == 'YOLOXHead':
        head.strides = strides
    else:
        head.anchor_generator.strides = strides


def build(name, change=None, spread=None):
    """A small detector of three classes whose scores differ."""
    cfg = Config.fromfile(
        Path(mmdet.__file__).parent / '.mim' / 'configs' / CONFIGS[name])
    cfg.model.bbox_head.num_classes = 3
    if change is not None:
        change(cfg.model)
    if 'init_cfg' in cfg.model.backbone:
        cfg.model.backbone.init_cfg = None
    if cfg.model.backbone.get('depth') == 50:
        cfg.model.backbone.update(depth=18)
        cfg.model.neck.in_channels = [64, 128, 256, 512]
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model).eval()
    # Untrained heads score everything alike.
    for key, value in model.bbox_head.named_parameters():
        if value.dim() == 4 and value.shape[0] <= 64:
            torch.nn.init.normal_(value, std=(
                spread or (3 if name == 'SSD' else .5)) / value[0].numel()**.5)
    for key, value in model.named_buffers():
        if key.endswith('running_var'):
            value.fill_(.5)
    for part in model.modules():
        if type(part).__name__ == 'L2Norm':  # memory as it was
            torch.nn.init.constant_(part.weight, part.scale)
    return model


def predicted(model, size=SIZE):
    batch = example_batch('mmdet', size)
    sample, = model.test_step(batch)
    return sample.pred_instances


def image(size=SIZE):
    return example_batch('mmdet', size)['inputs'][0][None]


def others():
    """Images of another batch and size."""
    return torch.randint(0, 256, (3, 3, *OTHER), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize('name', CONFIGS)
def test_detections_are_those_of_mmdet(name, check_detections):
    model, size = build(name), EVEN if name == 'RTMDet' else SIZE
    ours = [each[0] for each in make_deployable(
        model).eval()(image(size))]
    if name == 'SSD':  # mmdet 3.3 asks its SSDHead for what it has not
        model.bbox_head.loss_cls = None
    check_detections(ours, predicted(model, size))


@torch.no_grad()
@pytest.mark.parametrize('clip_border', [True, False])
def test_boxes_are_clipped_only_where_the_coder_says_so(clip_border):
    model = build('RetinaNet')
    model.bbox_head.bbox_coder.clip_border = clip_border
    boxes, _, labels = make_deployable(model).eval()(image())
    assert bool((boxes[labels >= 0] < 0).any()) is not clip_border


@torch.no_grad()
@pytest.mark.parametrize('name', ['RetinaNet', 'YOLOv3', 'YOLOX'])
@pytest.mark.parametrize('change', [
    dict(max_per_img=40), dict(min_bbox_size=6), dict(max_per_img=0),
    dict(nms=dict(type='nms', iou_threshold=.5, class_agnostic=True))])
def test_fields_of_test_cfg_do_what_they_do_in_mmdet(name, change,
                                                     check_detections):
    """YOLOX' own post-processing reads neither of the first two."""
    model = build(name, two_levels, SPREAD[name])
    model.bbox_head.test_cfg.update(change)
    theirs = predicted(model)
    ours = [each[0] for each in make_deployable(model).eval()(image())]
    assert int((ours[2] >= 0).sum()) == len(theirs)
    if len(theirs):
        check_detections(ours, theirs)


@pytest.mark.parametrize('name, change, message', [
    ('RetinaNet', dict(max_per_img=-1), 'has max_per_img=-1, which is'),
    ('YOLOv3', dict(nms=None), 'has nms=None, which keeps all boxes'),
    ('YOLOX', dict(nms=None), 'has nms=None, which keeps all boxes')])
def test_test_cfgs_that_cannot_be_exported_are_refused(name, change, message):
    model = build(name, two_levels)
    model.bbox_head.test_cfg.update(change)
    with pytest.raises(ValueError, match=(
            f'bbox_head.test_cfg {message}.*--raw')):
        make_deployable(model)


def test_yolox_does_not_read_how_many_boxes_there_may_be():
    model = build('YOLOX', two_levels)
    model.bbox_head.test_cfg.max_per_img = -1
    assert make_deployable(model).eval()(image())[2].shape == (1, 1000)


def test_heads_that_are_not_known_are_refused():
    model = build('RetinaNet')
    model.bbox_head.__class__ = type('MyHead', (type(model.bbox_head), ), dict(
        _bbox_post_process=lambda *args, **kwargs: None))
    with pytest.raises(ValueError, match='bbox_head is a MyHead.*--raw'):
        make_deployable(model)
    raw = make_deployable(model, raw=True).eval()
    names = raw.names_for(image())
    assert names == tuple(f'{kind}.{level}' for kind in (
        'cls_scores', 'bbox_preds') for level in range(5))


@torch.no_grad()
@pytest.mark.parametrize('name', ['RetinaNet', 'FCOS', 'ATSS', 'YOLOX', 'GFL',
                                  'VFNet', 'SSD', 'YOLOv3', 'RTMDet'])
def test_onnx_runtime_gives_the_detections_of_the_integer_model(
        name, tmp_path):
    model, x = build(name, two_levels, SPREAD[name]), image()
    dynamic = ['batch', 'size']
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    deployable = make_deployable(model).eval()
    gdrq_mm.calibrate(model, [lambda: deployable(x)])
    integer = to_integer(merge(deployable, x), x, dynamic=dynamic)
    path = tmp_path / 'model.onnx'
    report = export_onnx(integer, x, path, dynamic=dynamic,
                         input_names=deployable.input_names,
                         output_names=deployable.output_names)
    deformable = [f'bbox_head.vfnet_{kind}_dconv'
                  for kind in ('reg_refine', 'cls')]
    assert list(report.float_layers) == deformable * (name == 'VFNet')
    assert len(report.others) == 2
    runner = onnx_check.session(path)
    for images in (x, others()):
        ours = integer(images)
        assert ((ours[2] >= 0).sum(1) > 3).all()
        theirs = map(torch.from_numpy, onnx_check.run(runner, [images]))
        for mine, other in zip(ours, theirs):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize('name', CONFIGS)
def test_graphs_of_any_batch_and_size_give_mmdets_detections(
        name, check_detections):
    model = build(name, two_levels, SPREAD[name])
    deployable = make_deployable(model).eval()
    graph = capture(deployable, (image(), ), ['batch', 'size'])
    sample, = example_batch('mmdet', OTHER)['data_samples']
    images = others()
    if name == 'SSD':  # mmdet 3.3 asks its SSDHead for what it has not
        model.bbox_head.loss_cls = None
    expected = model.test_step(dict(
        inputs=list(images), data_samples=[sample.clone() for _ in images]))
    for *ours, theirs in zip(*graph(images), expected):
        check_detections(ours, theirs.pred_instances)


@torch.no_grad()
def test_raw_outputs_of_any_batch_and_size_are_those_of_the_head():
    model, images = build('RetinaNet', two_levels), others()
    raw = make_deployable(model, raw=True).eval()
    found = capture(raw, (image(), ), ['batch', 'size'])(images)
    scores, boxes = model(raw.prepare(images), mode='tensor')
    for ours, theirs in zip(found, (*scores, *boxes)):
        torch.testing.assert_close(ours, theirs)
