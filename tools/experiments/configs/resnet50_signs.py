# ResNet-50, an eighth as wide, with a stem for small images.
_base_ = [
    'mmpretrain::_base_/models/resnet50_cifar.py',
    'mmpretrain::_base_/default_runtime.py', './signs.py',
    '../../../configs/_base_/gdrq_mm.py'
]

model = dict(
    # Stride 2 also in the first stage: a quarter of the work.
    backbone=dict(base_channels=8, stem_channels=8, strides=(2, 2, 2, 2)),
    head=dict(num_classes=100, in_channels=256))
