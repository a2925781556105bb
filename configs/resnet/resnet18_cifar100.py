# Tables 1 and 2, float (the paper: top-1 73): ResNet-18 with stride 1 in its
# first block, from scratch. OpenMMLab has no such checkpoint.
_base_ = 'mmpretrain::resnet/resnet50_8xb16_cifar100.py'

model = dict(backbone=dict(depth=18), head=dict(in_channels=512))
