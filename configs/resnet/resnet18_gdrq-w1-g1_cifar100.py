# Table 2, group size 1: binary weights (the paper: drop 1.6, float 73).
_base_ = './resnet18_gdrq_cifar100.py'

model = dict(quantization=dict(weight=dict(bits=1, group_size=1)))
# The output of resnet18_reshape-g1_cifar100.py.
load_from = 'work_dirs/resnet18_reshape-g1_cifar100/epoch_200.pth'
