# The small Faster R-CNN with 4-bit weights and activations, and with the 8-bit
# residual sums of integer kernels in training.
_base_ = './faster-rcnn_r18-small_fpn_finetune_demo-voc.py'

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
                             'rpn_head.rpn_cls',
                             'rpn_head.rpn_reg',
                             'roi_head.bbox_head.fc_*')
            ],
            # From tools/analyze.py residuals.
            residual=dict(outputs=[
                'backbone.relu',
                'backbone.layer*.0',
                'backbone.layer*.*.bn2',
                'backbone.layer*.0.downsample.1',
                'neck.lateral_convs.*.conv',
                'neck.fpn_convs.*.conv',
                'rpn_head.rpn_cls',
                'rpn_head.rpn_reg',
            ])))
]
