# Table 4, float (the paper: top-1 74.8): mmpretrain's float model, its weights
# and activations reshaped, nothing rounded. The paper names neither group
# size nor what becomes of first and last layers: 4, and 8 bits.
_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/schedules/gdrq_imagenet_30e.py', '../_base_/gdrq_mm.py'
]

model = dict(
    type='QuantizedModel',
    architecture='ImageClassifier',
    quantization=dict(
        weight=dict(bits=4, group_size=4, k=2.0, levels='odd'),
        activation=dict(bits=4, threshold='mean'),
        rules=[
            dict(match=name, weight=dict(bits=8), activation=dict(bits=8))
            for name in ('backbone.conv1', 'head.fc')
        ]))
custom_hooks = [
    dict(type='GDRQHook', begin_epoch=_base_.train_cfg.max_epochs)
]
# mmpretrain's resnet50_8xb32_in1k, top-1 76.55.
load_from = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth'  # noqa: E501
