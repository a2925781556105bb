"""Outputs before post-processing: their names, and what has none."""
import importlib
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from gdrq_mm.deployable import make_deployable
from gdrq_mm.integer.graph import capture

SIZE = (64, 64)


def build(config, scope='mmdet'):
    """A small model of one of the package's configs."""
    folder = Path(importlib.import_module(scope).__file__).parent
    model = Config.fromfile(folder / '.mim' / 'configs' / config).model
    model.backbone.update(depth=18, init_cfg=None)
    model.pop('pretrained', None)
    model.data_preprocessor.pop('batch_augments', None)
    model.data_preprocessor.pop('size', None)
    for part in (model.get('neck'), *(
            [model[name]] if not isinstance(model[name], list)
            else model[name] for name in ('panoptic_head', 'decode_head')
            if name in model)):
        for each in part if isinstance(part, list) else [part]:
            if each and each.in_channels == [256, 512, 1024, 2048]:
                each.in_channels = [64, 128, 256, 512]
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(model)
    model.eval()
    return model


def names(model):
    """Of the raw outputs, without levels."""
    raw = make_deployable(model, raw=True).eval()
    with torch.no_grad():
        found = raw.names_for(torch.zeros(1, 3, *SIZE))
    return list(dict.fromkeys(name.rpartition('.')[0] for name in found))


@pytest.mark.parametrize('config, expected', [
    ('solo/solo_r50_fpn_1x_coco.py', ['mlvl_mask_preds', 'mlvl_cls_scores']),
    ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
     ['cls_scores', 'bbox_preds', 'score_factors']),
    ('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
     ['outputs.0', 'outputs.1'])])
def test_names_are_those_of_what_the_head_hands_over(config, expected):
    """A mask head inherits ``predict_by_feat`` of boxes, and has no boxes."""
    assert names(build(config)) == expected


def test_other_numbers_of_outputs_have_no_names():
    model = build('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py')
    model.bbox_head.forward = lambda x: (x, x, x, x)
    assert names(model) == [f'outputs.{number}' for number in range(4)]


def test_heads_of_mmseg_are_told_of_the_images():
    model = build('mask2former/mask2former_r50_8xb2-90k_cityscapes-'
                  '512x1024.py', 'mmseg')
    assert names(model) == ['outputs.0', 'outputs.1']


@torch.no_grad()
@pytest.mark.parametrize('config, scope, expected', [
    ('yolact/yolact_r50_1xb8-55e_coco.py', 'mmdet',
     ['cls_scores', 'bbox_preds', 'coeff_preds', 'prototypes']),
    ('condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py', 'mmdet',
     ['cls_scores', 'bbox_preds', 'score_factors', 'param_preds',
      'prototypes']),
    ('boxinst/boxinst_r50_fpn_ms-90k_coco.py', 'mmdet',
     ['cls_scores', 'bbox_preds', 'score_factors', 'param_preds',
      'prototypes']),
    ('fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py', 'mmdet', ['features']),
    ('point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py', 'mmseg',
     ['logits'])])
def test_what_comes_before_more_than_images_is_needed(
        config, scope, expected):
    model = build(config, scope)
    raw = make_deployable(model, raw=True).eval()
    image = 255 * torch.rand(2, 3, 96, 128, generator=torch.Generator(
        ).manual_seed(0))
    outputs = dict(raw.named(image))
    assert list(dict.fromkeys(name.partition('.')[0] for name in outputs)) \
        == expected
    graph = capture(raw, (image[:1], ), ['batch', 'size'])
    for ours, theirs in zip(graph(image), raw(image)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    for name, value in of_mmdet_or_mmseg(model, raw.prepare(image)).items():
        torch.testing.assert_close(outputs[name], value)


def of_mmdet_or_mmseg(model, inputs):
    """The last of the outputs above, computed by the package."""
    features = model.extract_feat(inputs)
    if hasattr(model, 'roi_head'):
        return {'features.4': features[-1]}
    if hasattr(model, 'decode_head'):
        return dict(logits=model.decode_head[0](features))
    head = model.mask_head
    return dict(prototypes=head.mask_feature_head(features) if hasattr(
        head, 'mask_feature_head') else head.protonet(features[0]))


@pytest.mark.parametrize('config, part, message', [
    ('yolact/yolact_r50_1xb8-55e_coco.py', 'mask_head',
     r'mask_head is a Mine, whose forward is not known \(YOLACTProtonet, '),
    ('sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', 'roi_head',
     'rpn_head is a EmbeddingRPNHead, whose forward is not defined')])
def test_where_no_part_takes_images_alone_it_is_refused(
        config, part, message):
    model = build(config)
    changed = getattr(model, part)
    method = 'forward' if part == 'mask_head' else 'predict'
    changed.__class__ = type('Mine', (type(changed), ), {
        method: lambda *args, **kwargs: None})
    # Of the two forms, what is refused does not name the other.
    for raw in (True, False):
        with pytest.raises(ValueError, match=f'^{message}.*; wrap the parts'):
            make_deployable(model, raw=raw)


@torch.no_grad()
def test_graphs_of_mask_heads_with_sampled_points_give_their_outputs():
    """Sizes of levels, which mmdet computes in tensors, are numbers there."""
    raw = make_deployable(build('mask2former/mask2former_r50_8xb2-lsj-50e_'
                                'coco.py'), raw=True).eval()
    example = torch.zeros(1, 3, *SIZE)
    graph = capture(raw, (example, ))
    image = torch.randint(0, 256, example.shape, generator=torch.Generator(
        ).manual_seed(0)).float()
    for ours, theirs in zip(graph(image), raw(image)):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(RuntimeError, match=r'^panoptic_head.pixel_decoder.'
                       r'encoder.layers.0.self_attn is a MultiScale.*: leave '
                       r'out --dynamic \(dynamic=\(\)\)$'):
        capture(raw, (example, ), ['size'])


def test_a_detector_that_is_given_its_regions_has_raw_outputs_alone():
    model = build('fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py')
    with pytest.raises(ValueError, match='model is a FastRCNN without '
                       'rpn_head, .* of another model; .*--raw'):
        make_deployable(model)


def test_mask_heads_have_no_boxes_to_post_process():
    model = build('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py')
    with pytest.raises(ValueError, match='model is a Mask2Former, whose '
                       'predict is not known.*--raw'):
        make_deployable(model)
