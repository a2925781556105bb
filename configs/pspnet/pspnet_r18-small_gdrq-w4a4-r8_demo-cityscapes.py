# The small PSPNet with 4-bit weights and activations, and with the 8-bit
# residual sums of integer kernels in training.
_base_ = './pspnet_r18-small_finetune_demo-cityscapes.py'

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
                for name in ('backbone.stem.0',
                             'decode_head.conv_seg')
            ],
            # From tools/analyze.py residuals.
            residual=dict(outputs=[
                'backbone.layer*.0',
                'backbone.layer*.*.bn2',
                'backbone.layer*.0.downsample.1',
                'backbone.layer4.1',
                'decode_head.conv_seg',
                'decode_head.psp_modules.*.1.activate',
            ])))
]
