# RetinaNet on BCCD, from our own ResNet-18 of Tiny-ImageNet-100 with 24
# channels in its first stage, of 64.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/default_runtime.py', '../_base_/gdrq_mm.py',
    '../_base_/datasets/bccd.py', '../_base_/schedules/bccd_12e.py'
]

model = dict(
    backbone=dict(
        depth=18,
        stem_channels=24,
        base_channels=24,
        # Everything trains, BN statistics too: images are another kind.
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None),
    neck=dict(in_channels=[24, 48, 96, 192], out_channels=64, num_outs=4),
    bbox_head=dict(
        num_classes=3,
        in_channels=64,
        stacked_convs=2,
        feat_channels=64,
        # Platelets are 20 pixels wide, white cells 100.
        anchor_generator=dict(octave_base_scale=2, strides=[8, 16, 32, 64])))

default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
# The output of resnet18-w24_tiny-imagenet-100.py, as model_zoo/ has it.
load_from = 'model_zoo/resnet18-w24_tiny-imagenet-100.pth'
