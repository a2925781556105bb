# DETR on BCCD, a quarter as wide and half as deep, from our own ResNet-18 of
# Tiny-ImageNet-100 with 24 channels in its first stage, of 64. Its third stage
# is what the transformer reads: platelets are 20 pixels wide.
_base_ = [
    'mmdet::_base_/default_runtime.py', '../../../configs/_base_/gdrq_mm.py',
    '../../../configs/_base_/datasets/bccd.py',
    '../../../configs/_base_/schedules/bccd_12e.py'
]

attention = dict(embed_dims=64, num_heads=4, dropout=0.0, batch_first=True)
ffn = dict(
    embed_dims=64,
    feedforward_channels=256,
    num_fcs=2,
    ffn_drop=0.0,
    act_cfg=dict(type='ReLU', inplace=True))
model = dict(
    type='DETR',
    num_queries=60,
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1),
    backbone=dict(
        type='ResNet',
        depth=18,
        stem_channels=24,
        base_channels=24,
        out_indices=(2, ),
        # Everything trains, BN statistics too: images are another kind.
        frozen_stages=-1,
        norm_eval=False,
        norm_cfg=dict(type='BN'),
        style='pytorch'),
    neck=dict(
        type='ChannelMapper',
        in_channels=[96],
        kernel_size=1,
        out_channels=64,
        act_cfg=None,
        norm_cfg=None,
        num_outs=1),
    encoder=dict(
        num_layers=3, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
    decoder=dict(
        num_layers=3,
        layer_cfg=dict(
            self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn),
        return_intermediate=True),
    positional_encoding=dict(num_feats=32, normalize=True),
    bbox_head=dict(
        type='DETRHead',
        num_classes=3,
        embed_dims=64,
        loss_cls=dict(
            type='CrossEntropyLoss',
            bg_cls_weight=0.1,
            use_sigmoid=False,
            loss_weight=1.0,
            class_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0)),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='ClassificationCost', weight=1.),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0)
            ])),
    test_cfg=dict(max_per_img=60))

max_epochs = 100
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=4e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True)
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
# The output of resnet18-w24_tiny-imagenet-100.py, as model_zoo/ has it.
load_from = 'model_zoo/resnet18-w24_tiny-imagenet-100.pth'
