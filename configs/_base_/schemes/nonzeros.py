# The defaults, but for thresholds from the mean of the values that are not
# zero: a scheme for "gdrq compare".
quantization = dict(
    weight=dict(type='ScaleClip'),
    activation=dict(type='ScaleClip', threshold='nonzero'))
