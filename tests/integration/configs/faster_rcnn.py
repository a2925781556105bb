# Faster R-CNN R50-FPN, a few channels wide, on 64-pixel images in VOC format;
# no augmentation. ``data_root`` of the datasets is filled in by the tests.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/default_runtime.py'
]
model = dict(
    backbone=dict(base_channels=4, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=8),
    rpn_head=dict(in_channels=8, feat_channels=8),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(output_size=3, sampling_ratio=1), out_channels=8),
        bbox_head=dict(
            in_channels=8, fc_out_channels=16, roi_feat_size=3,
            num_classes=10)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=32)),
        rpn_proposal=dict(nms_pre=40, max_per_img=16),
        rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(
        rpn=dict(nms_pre=40, max_per_img=16),
        rcnn=dict(score_thr=0., max_per_img=8)))
load_annotations = dict(type='LoadAnnotations', with_bbox=True)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True), load_annotations,
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                   'scale_factor'))
]
train_pipeline = [pipeline[0], load_annotations, pipeline[1], pipeline[3]]
dataset = dict(
    type='VOCDataset',
    data_root='',
    data_prefix=dict(sub_data_root='VOC2007/'),
    metainfo=dict(classes=('aeroplane', 'bicycle', 'bird', 'boat', 'bottle',
                           'bus', 'car', 'cat', 'chair', 'cow')),
    indices=4)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        ann_file='VOC2007/ImageSets/Main/trainval.txt',
        pipeline=train_pipeline,
        **dataset))
test_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        ann_file='VOC2007/ImageSets/Main/test.txt',
        test_mode=True,
        pipeline=pipeline,
        **dataset))
test_evaluator = dict(type='VOCMetric', metric='mAP', eval_mode='11points')
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2)
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)]
default_hooks = dict(logger=dict(interval=1))
randomness = dict(seed=0)
