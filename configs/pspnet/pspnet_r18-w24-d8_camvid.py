# PSPNet on CamVid, from our own ResNet-18 of Tiny-ImageNet-100 with 24
# channels in its first stage, of 64.
_base_ = [
    'mmseg::_base_/models/pspnet_r50-d8.py',
    'mmseg::_base_/default_runtime.py', '../_base_/gdrq_mm.py',
    '../_base_/datasets/camvid.py'
]

max_epochs = 10
# Synchronised BN needs several GPUs.
norm_cfg = dict(type='BN', requires_grad=True)

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    pretrained=None,
    backbone=dict(
        type='ResNet',
        depth=18,
        stem_channels=24,
        base_channels=24,
        norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=192, channels=64, num_classes=11, norm_cfg=norm_cfg),
    auxiliary_head=None)

train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        eta_min=2e-5,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True)
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))
log_processor = dict(by_epoch=True)
# It would time the convolutions of a GPU; there need not be one.
env_cfg = dict(cudnn_benchmark=False)
randomness = dict(seed=0)
# The output of resnet18-w24_tiny-imagenet-100.py; one comes with the
# repository: model_zoo/resnet18-w24_tiny-imagenet-100.pth.
load_from = 'work_dirs/resnet18-w24_tiny-imagenet-100/epoch_8.pth'
