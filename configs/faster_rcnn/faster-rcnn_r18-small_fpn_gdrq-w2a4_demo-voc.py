# The small Faster R-CNN with 2-bit weights and 4-bit activations.
_base_ = './faster-rcnn_r18-small_fpn_finetune_demo-voc.py'

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
                for name in ('backbone.conv1',
                             'rpn_head.rpn_cls',
                             'rpn_head.rpn_reg',
                             'roi_head.bbox_head.fc_*')
            ]))
]
