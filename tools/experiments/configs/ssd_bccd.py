# SSD on BCCD, with the backbone of the small RetinaNet instead of VGG.
_base_ = '../../../configs/retinanet/retinanet_r18-w24_fpn_bccd.py'

model = dict(
    type='SingleStageDetector',
    backbone=dict(out_indices=(1, 2, 3)),
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
