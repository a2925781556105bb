# The small ResNet-18 fine-tuned in float: what the quantized models are
# compared with.
_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    'mmpretrain::_base_/default_runtime.py', '../_base_/gdrq_mm.py',
    '../_base_/datasets/tiny_imagenet_100.py',
    '../_base_/schedules/tiny_imagenet_finetune_2e.py'
]

model = dict(
    backbone=dict(stem_channels=24, base_channels=24),
    head=dict(num_classes=100, in_channels=192))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)
# What resnet18-w24_tiny-imagenet-100.py trains: one of it comes with the
# repository.
load_from = 'model_zoo/resnet18-w24_tiny-imagenet-100.pth'
