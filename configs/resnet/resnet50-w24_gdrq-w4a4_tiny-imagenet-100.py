# The small ResNet-50 with 4-bit weights and 4-bit activations.
_base_ = './resnet50-w24_finetune_tiny-imagenet-100.py'

custom_hooks = [
    dict(
        type='GDRQHook',
        quantization=dict(
            weight=dict(bits=4, group_size=4, levels='even'),
            activation=dict(bits=4),
            # First and last layers at 8 bits.
            rules=[
                dict(match=name, weight=dict(bits=8), activation=dict(bits=8))
                for name in ('backbone.conv1',
                             'head.fc')
            ]))
]
