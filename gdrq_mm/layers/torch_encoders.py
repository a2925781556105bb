"""Encoders of torch, which have ways past the code of their layers."""
from typing import Iterable

from torch import nn

from .product_operands import ProductQuantizers


def refuse_nested_tensors(model: nn.Module, layers: Iterable[nn.Module]
                          ) -> None:
    """Let encoders compute on padded tensors where a layer is quantized.

    ``nn.TransformerEncoder`` looks at its first layer only; a float one lets
    it pass nested tensors through all of them, which no quantizer can read.

    Args:
        model (nn.Module): With quantized layers.
        layers (iterable of nn.Module): Those.
    """
    quantized = set(layers)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and \
                not quantized.isdisjoint(module.modules()):
            module.use_nested_tensor = False


def refuse_fused_layers(model: nn.Module) -> None:
    """Let encoder layers call their attention where products are quantized.

    In eval mode ``nn.TransformerEncoderLayer`` hands float weights to one
    kernel that computes all of it, products included.

    Args:
        model (nn.Module): With quantized layers.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(
                isinstance(each, ProductQuantizers)
                for each in module.modules()):
            module.activation_relu_or_gelu = 0  # only that kernel asks for it
