# VGG-16-BN with a quarter of the channels; its three fully connected
# layers, which are made for 224 pixels, are one behind a global average.
_base_ = [
    'mmpretrain::_base_/models/vgg16bn.py',
    'mmpretrain::_base_/default_runtime.py',
    '../../../configs/_base_/datasets/tiny_imagenet_100.py',
    '../../../configs/_base_/schedules/tiny_imagenet_8e.py'
]

custom_imports = dict(
    imports=['gdrq_mm', 'experiments.narrow_vgg'],
    allow_failed_imports=False)
model = dict(
    backbone=dict(type='NarrowVGG', divisor=4, num_classes=-1),
    neck=dict(_delete_=True, type='GlobalAveragePooling'),
    head=dict(
        _delete_=True,
        type='LinearClsHead',
        num_classes=100,
        in_channels=128,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
# Without shortcuts it does not learn at the rate of ResNets.
optim_wrapper = dict(optimizer=dict(lr=0.03))
