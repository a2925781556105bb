# Faster R-CNN with a quarter-width ResNet-18, trained from scratch on the
# demo VOC dataset; minutes on a two-core CPU.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/default_runtime.py', '../_base_/gdrq_mm.py',
    '../_base_/datasets/demo_voc.py'
]

max_epochs = 3
num_classes = 10

model = dict(
    backbone=dict(
        depth=18,
        base_channels=16,
        # No pretrained weights: everything trains, BN statistics too.
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32, num_outs=4),
    rpn_head=dict(
        in_channels=32,
        feat_channels=32,
        # Digits of 22 to 56 pixels, at least as high as wide.
        anchor_generator=dict(
            scales=[5], ratios=[1.0, 2.0], strides=[4, 8, 16, 32])),
    roi_head=dict(
        # Objects below 56 pixels are read from the finest level; one sample
        # a bin, because RoIAlign is half of the time on a CPU otherwise.
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=1),
            out_channels=32,
            finest_scale=28),
        bbox_head=dict(
            in_channels=32, fc_out_channels=128, num_classes=num_classes)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=100, max_per_img=64),
        rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(
        rpn=dict(nms_pre=50, max_per_img=40), rcnn=dict(max_per_img=20)))

train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        eta_min=3e-5,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True)
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=max_epochs, max_keep_ckpts=1))
randomness = dict(seed=0)
