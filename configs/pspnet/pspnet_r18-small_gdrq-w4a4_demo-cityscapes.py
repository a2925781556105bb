# The small PSPNet with 4-bit weights and activations, fine-tuned from the
# float model: add load_from=CHECKPOINT of the config it inherits.
_base_ = './pspnet_r18-small_demo-cityscapes.py'

custom_hooks = [
    dict(
        type='GDRQHook',
        quantization=dict(
            weight=dict(type='ScaleClip', bits=4, group_size=4, k=2.0),
            activation=dict(type='ScaleClip', bits=4),
            # First and last layers at 8 bits.
            rules=[
                dict(
                    match='backbone.stem.0',
                    weight=dict(bits=8),
                    activation=dict(bits=8)),
                dict(
                    match='decode_head.conv_seg',
                    weight=dict(bits=8),
                    activation=dict(bits=8))
            ]))
]

max_iters = 350
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(optimizer=dict(lr=0.002, weight_decay=0.01))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        eta_min=2e-05,
        begin=50,
        end=max_iters,
        by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
