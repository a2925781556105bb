"""What the sweep does, on one small model of every cause that was found."""
import functools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))

from sweeping import models, probe  # noqa: E402
from sweeping.families import mim_folder  # noqa: E402
from sweeping.page import verdict_of  # noqa: E402

NEW = dict(_delete_=True)  # in the place of a name
RESNET = {'backbone.depth': 18, 'backbone.base_channels': 8}
WIDTHS = [8, 16, 32, 64]  # of its stages
CSP = {'backbone.deepen_factor': .167, 'backbone.widen_factor': .125,
       'neck.in_channels': [32, 64, 128], 'neck.out_channels': 32,
       'neck.num_csp_blocks': 1, 'bbox_head.in_channels': 32,
       'bbox_head.feat_channels': 32, 'bbox_head.num_classes': 8}
BRANCHES = dict(NEW, num_blocks=[1] * 4, width_factor=[.125] * 4)

# No input reaches queries before the first attention over them: a product of
# activations that comes from one Parameter.
QUERIES = {'query_embedding.weight', 'panoptic_head.query_feat.weight'}

# Swin V2 computes them anew: its float state, too, is loaded without them.
TABLES = {'relative_coords_table', 'relative_position_index'}

# cause: package, config, changes of its model, operands that stay float.
CASES = {
    'DETR: in-place operations behind linear layers': (
        'mmdet', 'detr/detr_r50_8xb2-150e_coco.py', {
            **RESNET, 'neck.in_channels': [64], 'num_queries': 10,
            'encoder.num_layers': 1, 'decoder.num_layers': 1,
            'encoder.layer_cfg.ffn_cfg.feedforward_channels': 64,
            'decoder.layer_cfg.ffn_cfg.feedforward_channels': 64}, QUERIES),
    'Mask2Former: attention with masks, deformable attention': (
        'mmdet', 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', {
            **RESNET, 'panoptic_head.in_channels': WIDTHS,
            'panoptic_head.num_queries': 10,
            'panoptic_head.pixel_decoder.encoder.num_layers': 1,
            'panoptic_head.transformer_decoder.num_layers': 1}, QUERIES),
    'Swin V2: in-place operations, float state that does not load strictly': (
        'mmpretrain', 'swin_transformer_v2/'
        'swinv2-tiny-w8_16xb64_in1k-256px.py', {
            'backbone.arch': dict(NEW, embed_dims=16, depths=[2, 1, 1, 1],
                                  num_heads=[2] * 4,
                                  extra_norm_every_n_blocks=0),
            'backbone.img_size': 64, 'backbone.window_size': [4, 4, 2, 2],
            'head.in_channels': 128, 'head.num_classes': 8}, set()),
    'BEiT: a weight that is only read': (
        'mmpretrain', 'beit/benchmarks/beit-base-p16_8xb64_in1k.py', {
            'backbone.arch': dict(NEW, embed_dims=32, num_layers=2,
                                  num_heads=2, feedforward_channels=64),
            'backbone.img_size': 64, 'head.in_channels': 32,
            'head.num_classes': 8}, set()),
    'KNet: a weight that is called and read': (
        'mmseg', 'knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py', {
            **RESNET, 'decode_head.num_stages': 1,
            'decode_head.kernel_generate_head.in_channels': 64,
            'decode_head.kernel_generate_head.channels': 32,
            'decode_head.kernel_generate_head.num_classes': 8,
            'decode_head.kernel_update_head': [dict(
                type='KernelUpdateHead', num_classes=8, num_ffn_fcs=2,
                num_heads=2, num_mask_fcs=1, feedforward_channels=64,
                in_channels=32, out_channels=32, dropout=0.,
                conv_kernel_size=1, with_ffn=True,
                ffn_act_cfg=dict(type='ReLU', inplace=True),
                feat_transform_cfg=dict(conv_cfg=dict(type='Conv2d'),
                                        act_cfg=None),
                kernel_updator_cfg=dict(
                    type='KernelUpdator', in_channels=16, feat_channels=16,
                    out_channels=16, act_cfg=dict(type='ReLU', inplace=True),
                    norm_cfg=dict(type='LN')))],
            'auxiliary_head.in_channels': 32, 'auxiliary_head.channels': 16,
            'auxiliary_head.num_classes': 8}, set()),
    'RepVGG: branches': (
        'mmpretrain', 'repvgg/repvgg-A0_8xb32_in1k.py', {
            'backbone.arch': dict(BRANCHES, group_layer_map=None,
                                  se_cfg=None),
            'head.in_channels': 64, 'head.num_classes': 8}, set()),
    'MobileOne: branches': (
        'mmpretrain', 'mobileone/mobileone-s0_8xb32_in1k.py', {
            'backbone.arch': dict(BRANCHES, num_conv_branches=[2] * 4,
                                  num_se_blocks=[0] * 4),
            'head.in_channels': 64, 'head.num_classes': 8}, set()),
    'EfficientNet: padded convolutions': (
        'mmpretrain', 'efficientnet/efficientnet-b0_8xb32_in1k.py', {
            'head.num_classes': 8}, set()),
    'YOLOX: heads without normalization': (
        'mmdet', 'yolox/yolox_tiny_8xb8-300e_coco.py', CSP, set()),
    'RTMDet: convolutions under two names': (
        'mmdet', 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py', CSP, set()),
}


@pytest.mark.parametrize('cause', CASES)
def test_quantized_whole_and_reloaded_equal(cause):
    package, name, changes, stays_float = CASES[cause]
    record = dict(checks={})
    probe.check_first(record, {name: functools.partial(
        models.read_config, mim_folder(package) / 'configs' / name, package,
        {f'model.{key}': value for key, value in changes.items()})})
    assert verdict_of(record) == 'ok', record.get('traceback')
    assert set(record['checks']) == {*probe.CHECKS, 'macs'}
    assert {name.rpartition('.')[2] for name in record['float_gap']} == (
        TABLES if cause.startswith('Swin V2') else set())
    quantized, layers = record['layers']
    assert quantized == layers > 0
    macs = record['macs']
    assert {operand for operand, _ in macs['float']} <= stays_float
    assert macs['parametric'] - macs['low_bit'] == sum(
        number for _, number in macs['float'])
