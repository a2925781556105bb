# The defaults, but for thresholds from the mean of all values (Eq. 10), as
# published: a scheme for "gdrq compare".
quantization = dict(
    weight=dict(type='ScaleClip'),
    activation=dict(type='ScaleClip', threshold='mean'))
