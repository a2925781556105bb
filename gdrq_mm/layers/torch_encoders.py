"""Encoders of torch, which may hand nested tensors to their layers."""
from typing import Iterable

from torch import nn


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
