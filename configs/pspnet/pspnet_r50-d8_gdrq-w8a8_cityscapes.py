# Table 6, [8,8] (the paper: mIoU 75.66, float 75.6).
_base_ = './pspnet_r50-d8_gdrq_cityscapes.py'

model = dict(
    quantization=dict(weight=dict(bits=8), activation=dict(bits=8)))
