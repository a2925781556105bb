# Fine-tuning of a float ImageNet model. The paper names no schedule, this one
# is ours.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(
    type='CosineAnnealingLR',
    T_max=30,
    eta_min=1e-5,
    by_epoch=True,
    begin=0,
    end=30,
    convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=256)
