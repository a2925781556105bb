# The small Faster R-CNN with 4-bit weights and activations, fine-tuned from the
# float model: add load_from=CHECKPOINT of the config it inherits.
_base_ = './faster-rcnn_r18-small_fpn_demo-voc.py'

custom_hooks = [
    dict(
        type='GDRQHook',
        quantization=dict(
            weight=dict(type='ScaleClip', bits=4, group_size=4, k=2.0),
            activation=dict(type='ScaleClip', bits=4),
            # First and last layers at 8 bits.
            rules=[
                dict(
                    match='backbone.conv1',
                    weight=dict(bits=8),
                    activation=dict(bits=8)),
                dict(
                    match='rpn_head.rpn_cls',
                    weight=dict(bits=8),
                    activation=dict(bits=8)),
                dict(
                    match='rpn_head.rpn_reg',
                    weight=dict(bits=8),
                    activation=dict(bits=8)),
                dict(
                    match='roi_head.bbox_head.fc_*',
                    weight=dict(bits=8),
                    activation=dict(bits=8))
            ]))
]

max_epochs = 2
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=0.001, weight_decay=0.01))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-05,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True)
]
default_hooks = dict(checkpoint=dict(interval=max_epochs))
