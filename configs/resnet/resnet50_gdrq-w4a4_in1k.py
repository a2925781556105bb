# Table 4, [4,4] (the paper: top-1 74.5, float 74.8).
_base_ = './resnet50_reshape_in1k.py'

model = dict(
    quantization=dict(weight=dict(bits=4), activation=dict(bits=4)))
custom_hooks = [dict(type='GDRQHook')]
# The output of the config it inherits.
load_from = 'work_dirs/resnet50_reshape_in1k/epoch_30.pth'
