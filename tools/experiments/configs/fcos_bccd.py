# FCOS on BCCD, with backbone and schedule of the small RetinaNet.
_base_ = '../../../configs/retinanet/retinanet_r18-w24_fpn_bccd.py'

model = dict(
    type='FCOS',
    neck=dict(add_extra_convs='on_output'),
    bbox_head=dict(
        _delete_=True,
        type='FCOSHead',
        num_classes=3,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type='BN'),
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        strides=[8, 16, 32, 64],
        # Platelets are 20 pixels wide, white cells 100.
        regress_ranges=((-1, 24), (24, 48), (48, 96), (96, 1e8)),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0)))
