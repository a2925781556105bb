# The defaults, but for searched clip values of weights (Eq. 12): a scheme for
# "gdrq compare".
quantization = dict(
    weight=dict(type='ScaleClip', clip='search'),
    activation=dict(type='ScaleClip'))
