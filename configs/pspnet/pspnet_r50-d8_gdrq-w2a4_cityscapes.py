# Table 6, [2,4] (the paper: mIoU 74.7, float 75.6).
_base_ = './pspnet_r50-d8_gdrq_cityscapes.py'

model = dict(
    quantization=dict(weight=dict(bits=2), activation=dict(bits=4)))
