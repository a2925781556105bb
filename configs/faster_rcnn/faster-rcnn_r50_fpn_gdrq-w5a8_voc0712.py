# Table 5, [5,8] (the paper: mAP 79.0, float 79.0).
_base_ = './faster-rcnn_r50_fpn_gdrq_voc0712.py'

model = dict(
    quantization=dict(weight=dict(bits=5), activation=dict(bits=8)))
