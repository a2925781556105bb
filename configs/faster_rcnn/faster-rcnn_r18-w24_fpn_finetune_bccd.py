# The small Faster R-CNN fine-tuned in float: what the quantized models are
# compared with.
_base_ = './faster-rcnn_r18-w24_fpn_bccd.py'

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
# What the config it inherits trains: one of it comes with the repository.
load_from = 'model_zoo/faster-rcnn_r18-w24_fpn_bccd.pth'
