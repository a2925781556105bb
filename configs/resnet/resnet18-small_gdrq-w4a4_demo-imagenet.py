# The small ResNet-18 with 4-bit weights and 4-bit activations.
_base_ = './resnet18-small_finetune_demo-imagenet.py'

custom_hooks = [
    dict(
        type='GDRQHook',
        quantization=dict(
            # As published.
            weight=dict(type='ScaleClip', bits=4, group_size=4, k=2.0,
                        levels='odd'),
            activation=dict(type='ScaleClip', bits=4, threshold='mean'),
            # First and last layers at 8 bits.
            rules=[
                dict(match=name, weight=dict(bits=8), activation=dict(bits=8))
                for name in ('backbone.conv1',
                             'head.fc')
            ]))
]
