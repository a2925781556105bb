# Table 6, [4,4] (the paper: mIoU 75.62, float 75.6).
_base_ = './pspnet_r50-d8_gdrq_cityscapes.py'

model = dict(
    quantization=dict(weight=dict(bits=4), activation=dict(bits=4)))
