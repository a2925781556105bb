# The small RetinaNet with 4-bit weights and 4-bit activations.
_base_ = './retinanet_r18-w24_fpn_finetune_bccd.py'

custom_hooks = [
    dict(
        type='GDRQHook',
        quantization=dict(
            weight=dict(bits=4),
            activation=dict(bits=4),
            # First and last layers at 8 bits.
            rules=[
                dict(match=name, weight=dict(bits=8), activation=dict(bits=8))
                for name in ('backbone.conv1',
                             'bbox_head.retina_cls',
                             'bbox_head.retina_reg')
            ]))
]
