"""Quantized model -> merged model: integer codes, one scale a channel."""
from .check import merge_errors
from .layers import MergedLayer, QuantParams
from .merge import float_layers, merge, merged_layers

__all__ = ['MergedLayer', 'QuantParams', 'float_layers', 'merge',
           'merge_errors', 'merged_layers']
