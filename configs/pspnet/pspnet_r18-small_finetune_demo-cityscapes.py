# The schedule that follows float training: with nothing else, more float
# training (what the quantized models are compared with). The demo sets
# load_from to the checkpoint of the config it inherits.
_base_ = './pspnet_r18-small_demo-cityscapes.py'

max_iters = 350
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(optimizer=dict(lr=0.004, weight_decay=0.01))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        eta_min=4e-05,
        begin=50,
        end=max_iters,
        by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
