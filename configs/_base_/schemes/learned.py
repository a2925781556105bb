# The defaults, but for learned thresholds of activations: a scheme for
# "gdrq compare".
quantization = dict(
    weight=dict(type='ScaleClip'),
    activation=dict(type='ScaleClip', threshold='learned'))
