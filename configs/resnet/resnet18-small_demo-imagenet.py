# Quarter-width ResNet-18, trained from scratch on the demo ImageNet dataset;
# about a minute on a two-core CPU.
_base_ = [
    'mmpretrain::_base_/models/resnet18_cifar.py',
    'mmpretrain::_base_/default_runtime.py', '../_base_/gdrq_mm.py',
    '../_base_/datasets/demo_imagenet.py'
]

max_epochs = 6

model = dict(
    # Stride 2 also in the first stage: a quarter of the work.
    backbone=dict(base_channels=16, stem_channels=16, strides=(2, 2, 2, 2)),
    head=dict(num_classes=20, in_channels=128))

train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.05))
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
