"""Quantized layers, and the registry that says which layer becomes which."""
from typing import Dict, Type

from torch import nn

from .base import QuantLayer
from .conv import QuantConv2d
from .fast_paths import leave_fast_paths
from .linear import QuantLinear
from .output import OutputQuantizer, attach_output
from .relu import QuantReLU

QUANT_LAYERS: Dict[Type[nn.Module], Type[nn.Module]] = {}


def register_quant_layer(float_class: Type[nn.Module],
                         quant_class: Type[nn.Module]) -> None:
    """Let ``quantize_`` turn modules of exactly ``float_class`` into
    ``quant_class``.

    Register a subclass of a layer only if it computes what the layer does:
    its own ``forward`` is not called any more.
    """
    QUANT_LAYERS[float_class] = quant_class


register_quant_layer(nn.Conv2d, QuantConv2d)
register_quant_layer(nn.Linear, QuantLinear)
register_quant_layer(nn.ReLU, QuantReLU)

__all__ = ['OutputQuantizer', 'QUANT_LAYERS', 'QuantConv2d', 'QuantLayer',
           'QuantLinear', 'QuantReLU', 'attach_output', 'leave_fast_paths',
           'register_quant_layer']
