# Faster R-CNN on BCCD, from our own ResNet-18 of Tiny-ImageNet-100 with 24
# channels in its first stage, of 64.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
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
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        # Platelets are 20 pixels wide, white cells 100.
        anchor_generator=dict(scales=[5], strides=[4, 8, 16, 32])),
    roi_head=dict(
        # One sample a bin: RoIAlign is a third of the time on a CPU otherwise.
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=1), out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=3)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=150)))

default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
# The output of resnet18-w24_tiny-imagenet-100.py; one comes with the
# repository: model_zoo/resnet18-w24_tiny-imagenet-100.pth.
load_from = 'work_dirs/resnet18-w24_tiny-imagenet-100/epoch_8.pth'
