"""What a deployed model computes, against the model that it comes from."""
from typing import Dict

import torch
from torch import nn

from ..modes import eval_mode
from .merge import merged_layers


@torch.no_grad()
def merge_errors(model: nn.Module, merged: nn.Module, *args, **kwargs
                 ) -> Dict[str, float]:
    """Greatest difference of every merged layer, given the same inputs.

    Args:
        model (nn.Module): The quantized model.
        merged (nn.Module): What :func:`merge` gave for it.
        *args: What ``model`` is called with.
        **kwargs: Keyword arguments of that call.

    Returns:
        dict[str, float]: By layer, over all of its calls: the greatest
        absolute difference over the greatest absolute value.
    """
    layers, errors, inputs, handles = merged_layers(merged), {}, {}, []
    modules = dict(model.named_modules())

    def keep_input(name):
        def hook(module, x):
            inputs[name] = x[0].clone()  # later layers may write in place
        return hook

    def compare(name, layer):
        def hook(module, x, output):
            # Past a quantizer of the output: forward() calls no hooks.
            error = (layer.forward(inputs[name]) - output).abs().max()
            scale = output.abs().max().clamp(min=1e-30)
            errors[name] = float(torch.maximum(
                torch.tensor(errors.get(name, 0.)), error / scale))
        return hook

    for name, layer in layers.items():
        handles += [
            modules[name].register_forward_pre_hook(keep_input(name)),
            modules[layer.norm or name].register_forward_hook(
                compare(name, layer), prepend=True)]
    try:
        with eval_mode(model):
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return errors
