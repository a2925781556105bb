"""Quantized layers, and the registry that says which layer becomes which."""
from torch import nn

from .attention import QuantMultiheadAttention
from .base import InputFirst, QuantLayer
from .conv import QuantConv2d
from .count_products import count_products, products_of, register_products
from .linear import QuantLinear
from .output import OutputQuantizer, attach_output
from .product_operands import ProductOperands, ProductQuantizers
from .products import attach_products
from .registry import (
    MERGED_FORMS,
    QUANT_LAYERS,
    MergedForm,
    OwnForward,
    added_names,
    register_quant_layer,
)
from .relu import QuantReLU, warn_of_shared_places
from .switched import (
    check_layers_are_there,
    lost_layers,
    parameters_of,
    refuse_switches,
    watch_layers,
)
from .torch_encoders import refuse_fused_layers, refuse_nested_tensors

register_quant_layer(nn.Conv2d, QuantConv2d)
register_quant_layer(nn.Linear, QuantLinear)
register_quant_layer(nn.modules.linear.NonDynamicallyQuantizableLinear,
                     QuantLinear)  # the last one of nn.MultiheadAttention
register_quant_layer(nn.MultiheadAttention, QuantMultiheadAttention)
# torch hides them in one function; the quantized layer computes them.
register_products(nn.MultiheadAttention, 2)
register_quant_layer(nn.ReLU, QuantReLU)
for _layer in (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
               nn.ConvTranspose3d):
    register_quant_layer(_layer)

__all__ = ['InputFirst', 'MERGED_FORMS', 'MergedForm', 'OutputQuantizer',
           'OwnForward', 'ProductOperands', 'ProductQuantizers',
           'QUANT_LAYERS', 'QuantConv2d', 'QuantLayer', 'QuantLinear',
           'QuantMultiheadAttention', 'QuantReLU', 'added_names',
           'attach_output', 'attach_products', 'check_layers_are_there',
           'count_products', 'lost_layers', 'parameters_of', 'products_of',
           'refuse_fused_layers', 'refuse_nested_tensors', 'refuse_switches',
           'register_products', 'register_quant_layer',
           'warn_of_shared_places', 'watch_layers']
