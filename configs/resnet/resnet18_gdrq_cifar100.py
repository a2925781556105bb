# What the quantized cells of Tables 1 and 2 share: weights of all
# convolutions, as the paper says; its float activations and classifier.
_base_ = [
    'mmpretrain::_base_/models/resnet18_cifar.py',
    'mmpretrain::_base_/datasets/cifar100_bs16.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/schedules/gdrq_cifar_50e.py', '../_base_/gdrq_mm.py'
]

model = dict(
    type='QuantizedModel',
    architecture='ImageClassifier',
    quantization=dict(
        # Each cell has bits of its own.
        weight=dict(bits=None, levels='odd'),
        rules=[dict(match='head.fc', skip=True)]),
    head=dict(num_classes=100))
custom_hooks = [dict(type='GDRQHook')]
