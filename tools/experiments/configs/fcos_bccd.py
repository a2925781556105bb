# FCOS on BCCD, from our own ResNet-18 of Tiny-ImageNet-100 with 24 channels in
# its first stage, of 64.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    '../../../configs/_base_/gdrq_mm.py',
    '../../../configs/_base_/datasets/bccd.py',
    '../../../configs/_base_/schedules/bccd_12e.py'
]

model = dict(
    type='FCOS',
    backbone=dict(
        depth=18,
        stem_channels=24,
        base_channels=24,
        # Everything trains, BN statistics too: images are another kind.
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None),
    neck=dict(
        in_channels=[24, 48, 96, 192],
        out_channels=64,
        add_extra_convs='on_output',
        num_outs=4),
    bbox_head=dict(
        _delete_=True,
        type='FCOSHead',
        num_classes=3,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type='BN'),
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        strides=[8, 16, 32, 64],
        # Platelets are 20 pixels wide, white cells 100.
        regress_ranges=((-1, 24), (24, 48), (48, 96), (96, 1e8)),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0)))

default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
# The output of resnet18-w24_tiny-imagenet-100.py, as model_zoo/ has it.
load_from = 'model_zoo/resnet18-w24_tiny-imagenet-100.pth'
