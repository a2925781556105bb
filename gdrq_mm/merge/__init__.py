"""Quantized model -> merged model: integer codes, one scale per channel."""
from .check import merge_errors
from .grids import QuantParams
from .layers import MergedConv2d, MergedLayer, WeightOnly
from .merge import (
    float_layers,
    in_float32,
    is_merged,
    merge,
    merged_layers,
)

__all__ = ['MergedConv2d', 'MergedLayer', 'QuantParams', 'WeightOnly',
           'float_layers', 'in_float32', 'is_merged', 'merge',
           'merge_errors', 'merged_layers']
