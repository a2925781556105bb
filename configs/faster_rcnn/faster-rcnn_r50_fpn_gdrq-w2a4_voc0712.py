# Table 5, [2,4] (the paper: mAP 78.3, float 79.0).
_base_ = './faster-rcnn_r50_fpn_gdrq_voc0712.py'

model = dict(
    quantization=dict(weight=dict(bits=2), activation=dict(bits=4)))
