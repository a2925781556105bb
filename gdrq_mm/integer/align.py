"""Biases of a quantized model -> those that integer kernels add."""
from collections import Counter
from typing import List

import torch
from torch import nn

from ..merge import merged_layers
from .model import IntegerModel


@torch.no_grad()
def align_biases_(model: nn.Module, merged: nn.Module, integer: IntegerModel
                  ) -> List[str]:
    """Round the biases of a trained model to steps of int32 biases, in place.

    An integer kernel adds a bias of whole steps, some thousandths of a step
    of the codes that come out: enough to move a code in most images. With
    the same bias in the quantized model (in its normalization, where that is
    merged), both compute the same codes.

    Args:
        model (nn.Module): The quantized model.
        merged (nn.Module): What :func:`merge` gave for it.
        integer (IntegerModel): What :func:`to_integer` gave for that.

    Returns:
        list[str]: Layers whose bias stays as it was, because its
        normalization has none or another layer has the same.

    Examples:
        >>> import gdrq_mm
        >>> from gdrq_mm.deploy import merge, to_integer
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> report = gdrq_mm.quantize_(model, dict(
        ...     weight=dict(bits=4), activation=dict(bits=4)))
        >>> images = torch.rand(2, 3, 8, 8)
        >>> gdrq_mm.calibrate(model, [lambda: model(images)])
        1
        >>> merged = merge(model, images)
        >>> align_biases_(model, merged, to_integer(merged, images))
        []
        >>> integer = to_integer(merge(model, images), images)
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = merged_layers(merged)
    biases = {name: modules[layers[name].norm or name].bias
              for name in integer.weights if name in layers}
    readers, left = Counter(map(id, biases.values())), []
    for name, bias in biases.items():
        layer, part = layers[name], integer.graph_module.get_submodule(name)
        step = part.w_scale.double() * layer.grid.scale
        change = part.bias.double() * step - layer.bias.double()
        if bias is None or readers[id(bias)] > 1:
            if change.any():
                left.append(name)
            continue
        bias.copy_(bias.double() + change)
    return left
