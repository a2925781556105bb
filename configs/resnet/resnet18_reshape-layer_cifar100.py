# Table 2, group size -1, float (the paper: top-1 73): trained from scratch as
# the float model is, with reshaped weights and no rounding.
_base_ = ['./resnet18_cifar100.py', '../_base_/gdrq_mm.py']

model = dict(
    type='QuantizedModel',
    architecture='ImageClassifier',
    quantization=dict(
        weight=dict(bits=2, group_size=-1, levels='odd'),
        rules=[dict(match='head.fc', skip=True)]))
custom_hooks = [
    dict(type='GDRQHook', begin_epoch=_base_.train_cfg.max_epochs)
]
