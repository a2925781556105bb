# ResNet-18 with stride 1 in its first block, an eighth as wide.
_base_ = [
    'mmpretrain::_base_/models/resnet18_cifar.py',
    'mmpretrain::_base_/default_runtime.py', './signs.py',
    '../../../configs/_base_/gdrq_mm.py'
]

model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    head=dict(num_classes=100, in_channels=64))
