# Table 3, [2,4] (the paper: top-1 71.7, float 72.6).
_base_ = './vgg16bn_reshape_in1k.py'

model = dict(
    quantization=dict(weight=dict(bits=2), activation=dict(bits=4)))
custom_hooks = [dict(type='GDRQHook')]
# The output of the config it inherits.
load_from = 'work_dirs/vgg16bn_reshape_in1k/epoch_30.pth'
