# What the quantized cells of Table 6 share; the float cell (the paper: mIoU
# 75.6) is mmseg's own config and checkpoint. The paper names neither group
# size nor what becomes of first and last layers: 4, and 8 bits.
_base_ = [
    'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    '../_base_/gdrq_mm.py'
]

model = dict(
    type='QuantizedModel',
    architecture='EncoderDecoder',
    quantization=dict(
        weight=dict(group_size=4, k=2.0, levels='odd'),
        activation=dict(threshold='mean'),
        rules=[
            dict(match=name, weight=dict(bits=8), activation=dict(bits=8))
            for name in ('backbone.stem.0', '*_head.conv_seg')
        ]),
    pretrained=None)
optim_wrapper = dict(optimizer=dict(lr=0.005))
# The first quarter reshapes the float model.
custom_hooks = [dict(type='GDRQHook', begin_iter=10000)]
# mmseg's pspnet_r50-d8_4xb2-40k_cityscapes-512x1024, mIoU 77.85.
load_from = 'https://download.openmmlab.com/mmsegmentation/v0.5/pspnet/pspnet_r50-d8_512x1024_40k_cityscapes/pspnet_r50-d8_512x1024_40k_cityscapes_20200605_003338-2966598c.pth'  # noqa: E501
