# Table 1, group size 16: 2-bit weights without reshaping (the paper: top-1
# 20, 68.1 before and after fine-tuning, float 73). Testing the float
# checkpoint with this config gives the figure before.
_base_ = './resnet18_gdrq_cifar100.py'

model = dict(
    quantization=dict(weight=dict(bits=2, group_size=16,
                                  clip='search', projection=False)))
# The output of resnet18_cifar100.py.
load_from = 'work_dirs/resnet18_cifar100/epoch_200.pth'
