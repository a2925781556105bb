# The small YOLOX fine-tuned in float: what the quantized models are compared
# with.
_base_ = './yolox_w16_bccd.py'

max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        eta_min=3e-6,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True)
]
# The output of the config it inherits.
load_from = 'work_dirs/yolox_w16_bccd/epoch_30.pth'
