# The small PSPNet with 2-bit weights and 4-bit activations.
_base_ = './pspnet_r18-small_finetune_demo-cityscapes.py'

custom_hooks = [
    dict(
        type='GDRQHook',
        quantization=dict(
            # As published.
            weight=dict(type='ScaleClip', bits=2, group_size=4, k=2.0,
                        levels='odd'),
            activation=dict(type='ScaleClip', bits=4, threshold='mean'),
            # First and last layers at 8 bits.
            rules=[
                dict(match=name, weight=dict(bits=8), activation=dict(bits=8))
                for name in ('backbone.stem.0',
                             'decode_head.conv_seg')
            ]))
]
