# The small PSPNet fine-tuned in float: what the quantized models are compared
# with.
_base_ = './pspnet_r18-w24-d8_camvid.py'

max_epochs = 3
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        eta_min=5e-6,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True)
]
# What the config it inherits trains: one of it comes with the repository.
load_from = 'model_zoo/pspnet_r18-w24-d8_camvid.pth'
