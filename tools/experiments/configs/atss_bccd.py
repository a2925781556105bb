# ATSS on BCCD, from our own ResNet-18 of Tiny-ImageNet-100 with 24 channels in
# its first stage, of 64.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    '../../../configs/_base_/gdrq_mm.py',
    '../../../configs/_base_/datasets/bccd.py',
    '../../../configs/_base_/schedules/bccd_12e.py'
]

model = dict(
    type='ATSS',
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
        type='ATSSHead',
        num_classes=3,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type='BN'),
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            # Platelets are 20 pixels wide, white cells 100.
            octave_base_scale=4,
            scales_per_octave=1,
            strides=[8, 16, 32, 64]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            target_means=[.0, .0, .0, .0],
            target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        loss_centerness=dict(
            type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0)),
    train_cfg=dict(
        _delete_=True,
        assigner=dict(type='ATSSAssigner', topk=9),
        allowed_border=-1,
        pos_weight=-1,
        debug=False),
    test_cfg=dict(nms=dict(iou_threshold=0.6)))

default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
# The output of resnet18-w24_tiny-imagenet-100.py, as model_zoo/ has it.
load_from = 'model_zoo/resnet18-w24_tiny-imagenet-100.pth'
