# The defaults, but for a zero point where inputs have small negatives: a
# scheme for "gdrq compare".
quantization = dict(
    weight=dict(type='ScaleClip'),
    activation=dict(type='ScaleClip', asymmetric=True))
