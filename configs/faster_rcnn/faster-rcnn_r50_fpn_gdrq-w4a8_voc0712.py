# Table 5, [4,8] (the paper: mAP 78.8, float 79.0).
_base_ = './faster-rcnn_r50_fpn_gdrq_voc0712.py'

model = dict(
    quantization=dict(weight=dict(bits=4), activation=dict(bits=8)))
