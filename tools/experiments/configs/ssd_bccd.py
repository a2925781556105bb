# SSD on BCCD, from our own ResNet-18 of Tiny-ImageNet-100 with 24 channels in
# its first stage, of 64, instead of VGG.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    '../../../configs/_base_/gdrq_mm.py',
    '../../../configs/_base_/datasets/bccd.py',
    '../../../configs/_base_/schedules/bccd_12e.py'
]

model = dict(
    type='SingleStageDetector',
    backbone=dict(
        depth=18,
        stem_channels=24,
        base_channels=24,
        out_indices=(1, 2, 3),
        # Everything trains, BN statistics too: images are another kind.
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None),
    neck=dict(
        _delete_=True,
        type='SSDNeck',
        in_channels=(48, 96, 192),
        out_channels=(48, 96, 192, 96),
        level_strides=(2, ),
        level_paddings=(1, ),
        l2_norm_scale=20,
        norm_cfg=dict(type='BN')),
    bbox_head=dict(
        _delete_=True,
        type='SSDHead',
        in_channels=(48, 96, 192, 96),
        num_classes=3,
        anchor_generator=dict(
            type='SSDAnchorGenerator',
            scale_major=False,
            input_size=320,
            # Platelets are 20 pixels wide, white cells 100.
            min_sizes=[20, 40, 70, 110],
            max_sizes=[40, 70, 110, 160],
            strides=[8, 16, 32, 64],
            ratios=[[2], [2], [2], [2]]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            target_means=[.0, .0, .0, .0],
            target_stds=[0.1, 0.1, 0.2, 0.2])),
    train_cfg=dict(
        _delete_=True,
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.,
            ignore_iof_thr=-1,
            gt_max_assign_all=False),
        sampler=dict(type='PseudoSampler'),
        smoothl1_beta=1.,
        allowed_border=-1,
        pos_weight=-1,
        neg_pos_ratio=3,
        debug=False),
    test_cfg=dict(
        nms=dict(iou_threshold=0.45), score_thr=0.02, max_per_img=200))

default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
# The output of resnet18-w24_tiny-imagenet-100.py, as model_zoo/ has it.
load_from = 'model_zoo/resnet18-w24_tiny-imagenet-100.pth'
