# The small PSPNet with 2-bit weights and 2-bit activations.
_base_ = './pspnet_r18-w24-d8_finetune_camvid.py'

custom_hooks = [
    dict(
        type='GDRQHook',
        quantization=dict(
            weight=dict(bits=2, group_size=4, levels='even'),
            activation=dict(bits=2),
            # First and last layers at 8 bits.
            rules=[
                dict(match=name, weight=dict(bits=8), activation=dict(bits=8))
                for name in ('backbone.conv1',
                             'decode_head.conv_seg')
            ]))
]
