# VGG-16-BN, an eighth as wide; its three fully connected layers, which are
# made for 224 pixels, are one behind a global average.
_base_ = [
    'mmpretrain::_base_/models/vgg16bn.py',
    'mmpretrain::_base_/default_runtime.py', './signs.py'
]

custom_imports = dict(
    imports=['gdrq_mm', 'experiments.narrow_vgg'],
    allow_failed_imports=False)
model = dict(
    backbone=dict(type='NarrowVGG', divisor=8, num_classes=-1),
    neck=dict(_delete_=True, type='GlobalAveragePooling'),
    head=dict(
        _delete_=True,
        type='LinearClsHead',
        num_classes=100,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
# Without shortcuts it learns slower, and at the rate of the others not at all.
max_iters = 5000
train_cfg = dict(max_iters=max_iters)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        eta_min=2e-5,
        begin=100,
        end=max_iters,
        by_epoch=False)
]
