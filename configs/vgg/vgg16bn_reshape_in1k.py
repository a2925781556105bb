# Table 3, float (the paper: top-1 72.6): mmpretrain's float model, its weights
# and activations reshaped, nothing rounded. The paper names neither group
# size nor what becomes of first and last layers: 4, and 8 bits.
_base_ = [
    'mmpretrain::_base_/models/vgg16bn.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_resize.py',
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
            for name in ('backbone.features.0.conv', 'backbone.classifier.6')
        ]))
# Batches of 512 on 8 GPUs, as the paper says; decay as in the VGG paper.
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(weight_decay=5e-4))
auto_scale_lr = dict(base_batch_size=512)
custom_hooks = [
    dict(type='GDRQHook', begin_epoch=_base_.train_cfg.max_epochs)
]
# mmpretrain's vgg16bn_8xb32_in1k, top-1 73.74.
load_from = 'https://download.openmmlab.com/mmclassification/v0/vgg/vgg16_bn_batch256_imagenet_20210208-7e55cd29.pth'  # noqa: E501
