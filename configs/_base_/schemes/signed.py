# The defaults, but for signed codes where inputs have negative values, small
# ones too: a scheme for "gdrq compare".
quantization = dict(
    weight=dict(type='ScaleClip'),
    activation=dict(type='ScaleClip', asymmetric=False))
