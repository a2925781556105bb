# What the quantized cells of Table 5 share; the float cell (the paper: mAP
# 79.0) is mmdet's own config. The paper names neither group size nor what
# becomes of first and last layers: 4, and 8 bits.
_base_ = [
    'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py',
    '../_base_/gdrq_mm.py'
]

model = dict(
    type='QuantizedModel',
    architecture='FasterRCNN',
    quantization=dict(
        weight=dict(group_size=4, k=2.0, levels='odd'),
        activation=dict(threshold='mean'),
        rules=[
            dict(match=name, weight=dict(bits=8), activation=dict(bits=8))
            for name in ('backbone.conv1', 'rpn_head.rpn_cls',
                         'rpn_head.rpn_reg', 'roi_head.bbox_head.fc_*')
        ]),
    # Statistics of the float model are off for low-bit weights; two images a
    # GPU are too few for statistics of their own.
    backbone=dict(frozen_stages=-1, norm_eval=False, init_cfg=None))
sync_bn = 'torch'
optim_wrapper = dict(optimizer=dict(lr=0.005))
# One epoch (three times all images) reshapes the float model.
custom_hooks = [dict(type='GDRQHook', begin_epoch=1)]
# The output of mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py; mmdet
# lists no checkpoint of it.
load_from = 'work_dirs/faster-rcnn_r50_fpn_1x_voc0712/epoch_4.pth'
