# PSPNet with a quarter-width ResNet-18, trained from scratch on the demo
# Cityscapes dataset; minutes on a two-core CPU.
_base_ = [
    'mmseg::_base_/models/pspnet_r50-d8.py',
    'mmseg::_base_/default_runtime.py', '../_base_/gdrq_mm.py',
    '../_base_/datasets/demo_cityscapes.py'
]

max_iters = 500
# Synchronised BN needs several GPUs.
norm_cfg = dict(type='BN', requires_grad=True)
data_preprocessor = dict(size=_base_.crop_size)

model = dict(
    data_preprocessor=data_preprocessor,
    pretrained=None,
    # A stem of 64 channels would be most of the work.
    backbone=dict(
        depth=18, base_channels=16, stem_channels=32, norm_cfg=norm_cfg),
    decode_head=dict(in_channels=128, channels=32, norm_cfg=norm_cfg),
    auxiliary_head=None)

train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        eta_min=4e-5,
        begin=50,
        end=max_iters,
        by_epoch=False)
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook',
        by_epoch=False,
        interval=max_iters,
        max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))
# It would time the convolutions of a GPU; there need not be one.
env_cfg = dict(cudnn_benchmark=False)
randomness = dict(seed=0)
