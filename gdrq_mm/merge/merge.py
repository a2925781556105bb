"""Group scales and batch normalization -> one scale and bias per channel.

Paper: "Low-bit Quantization Needs Good Distribution" (Yu et al.), Fig. 4b.
"""
import copy
from typing import Any, Dict, Optional

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..checkpoint import NAME, remove_load_gate
from ..layers import (
    OutputQuantizer,
    ProductQuantizers,
    QuantLayer,
    QuantReLU,
)
from ..training import QuantizationState
from .flow import trace_flow
from .forms import merged_form
from .grids import QuantParams
from .layers import (
    MergedLayer,
    MergedReLU,
    RoundedInput,
    RoundedOutput,
    RoundedProducts,
    take_place,
)


@torch.inference_mode(False)  # whose tensors could never be changed again
@torch.no_grad()
def merge(model: nn.Module, *args, **kwargs) -> nn.Module:
    """Merge group scales and batch normalization into a copy of ``model``.

    The model runs once: a normalization that alone reads what a layer returns
    is merged into the layer's scale and bias (a negative factor flips the
    signs of the codes, a zero factor leaves codes of zero). Every other
    quantized layer gets an explicit rescale: its group scales as one scale a
    channel. Quantized layers then compute with integer codes of one range.
    Output quantizers stay, also where the module they belong to goes away,
    and so do your own forward hooks. But where a normalization was merged,
    what its layer returns is normalized: hooks on that layer, attributes that
    keep its output and results that torch's pytree does not know see that.

    Layers that the example does not call, and layers with float weights or
    inputs, compute in float and are listed by :func:`float_layers`; quantized
    weights are kept as codes there as well. Layers whose weight other code
    reads keep its quantized values in float, listed as well. A float16,
    bfloat16 or float64 model becomes float32 first, and so do its inputs.

    Args:
        model (nn.Module): Quantized and trained, or a module around such a
            model.
        *args: What the model is called with.
        **kwargs: Keyword arguments of that call.

    Returns:
        nn.Module: A merged copy, in eval mode. Inference only.

    Raises:
        ValueError: Nothing is quantized, weights are still float ('reshape'
            phase), the threshold of a layer's input, of an output or of a
            product is not set, a layer reads inputs of several scales, or
            quantized and float ones, or a product has a weight as an operand
            in some calls only.

    Examples:
        >>> import gdrq_mm
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> report = gdrq_mm.quantize_(model, dict(
        ...     weight=dict(bits=4), activation=dict(bits=4)))
        >>> images = torch.rand(2, 3, 8, 8)
        >>> gdrq_mm.calibrate(model, [lambda: model(images)])
        1
        >>> merged = merge(model, images)
        >>> merged[0].weight.dtype, merged[0].norm
        (torch.int8, '1')
    """
    merged = copy.deepcopy(model)
    merged.eval()  # returns nothing in some models
    merged.float()
    args, kwargs = in_float32(args), in_float32(kwargs)
    _prepare_layers(merged)
    flows, outputs = trace_flow(merged, lambda: merged(*args, **kwargs))
    names = {module: name for name, module in merged.named_modules()}
    replaced: Dict[nn.Module, nn.Module] = {}
    for module, name in names.items():
        if isinstance(module, QuantReLU):
            grids = [_grid_of(each, name)
                     for each in module.site_quantizers]
            module.__class__ = MergedReLU
            module.start_merged(grids)
        for key, child in list(module.named_children()):
            if isinstance(child, OutputQuantizer):
                module._modules[key] = _rounded_output(
                    name, child, child in outputs)
            elif isinstance(child, ProductQuantizers):
                module._modules[key] = _rounded_products(name, child)
    for layer, flow in flows.items():
        replaced[layer] = merged_form(layer, flow, names)
        replaced[layer].input_keywords = layer.input_keywords
        take_place(layer, replaced[layer])
        if flow.norm is not None:
            replaced[flow.norm] = nn.Identity()
            take_place(flow.norm, replaced[flow.norm])
            flow.norm.forward = _LeftBehind(names[flow.norm])
        if replaced[layer] is not layer:
            layer.forward = _LeftBehind(names[layer])
    return _replace(merged, replaced)


class _LeftBehind:
    """The forward of a module that a merged one took the place of."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args, **kwargs):
        raise RuntimeError(
            f'{self.name} was merged, but the model calls it through a '
            'reference that is no submodule, such as a list of layers; make '
            'that an nn.ModuleList')


def in_float32(inputs: Any) -> Any:
    """Floating point tensors in float32, all else as it is; copies of what
    was made in inference mode, which nothing may write to."""

    def ready(value):
        if not isinstance(value, Tensor):
            return value
        value = value.float() if value.is_floating_point() else value
        return value.clone() if value.is_inference() else value

    return tree_map(ready, inputs)


def _grid_of(quantizer: nn.Module, name: str) -> Optional[QuantParams]:
    return QuantParams.of(quantizer, name) if quantizer.initialized else None


def _rounded_output(name: str, output: OutputQuantizer, called: bool
                    ) -> RoundedOutput:
    """What takes the place of the output quantizer of a module."""
    grid = _grid_of(output.quantizer, name)
    if grid is None and called:
        raise ValueError(
            f'{name or "the model"}: the threshold of its output is not set; '
            'load a trained checkpoint, train, or call gdrq_mm.calibrate')
    return RoundedOutput(grid)


def _rounded_products(name: str, operands: ProductQuantizers
                      ) -> RoundedProducts:
    """What takes the place of the quantizers of a module's products."""
    both = operands.seen & operands.of_weights
    if both:
        raise ValueError(
            f'{name or "the model"}: product {min(both) + 1} of its forward '
            'was seen with a weight as an operand and with activations only, '
            'so that its merged form is not known: leave its products float '
            f'with dict(match={name or "*"!r}, products=dict(bits=None)) in '
            'the rules')
    for product in operands.seen:
        if not all(operands[place].initialized
                   for place in (2 * product, 2 * product + 1)):
            raise ValueError(
                f'{name or "the model"}: the thresholds of its products of '
                'activations are not set; load a trained checkpoint, train, '
                'or call gdrq_mm.calibrate')
    return RoundedProducts(name, [_grid_of(each, name) for each in operands],
                           operands.of_weights, operands.sites)


def merged_layers(model: nn.Module) -> Dict[str, MergedLayer]:
    """The merged layers of a model, by name."""
    return {name: module for name, module in model.named_modules()
            if isinstance(module, MergedLayer)}


def is_merged(model: nn.Module) -> bool:
    """Whether no quantized layer waits for :func:`merge`; there may be none,
    and there may be such that stay as they are."""
    return all(hasattr(layer, 'float_reason') for layer in model.modules()
               if isinstance(layer, QuantLayer))


def float_layers(model: nn.Module) -> Dict[str, str]:
    """Layers of a merged model that compute in float, by name, and why."""
    reasons = {}
    inside = {f'{name}.0'.lstrip('.'): name
              for name, module in model.named_modules()
              if isinstance(module, RoundedInput)}
    for name, module in model.named_modules():
        weight = getattr(module, 'latent_weight', None)
        if weight is None:
            weight = getattr(module, 'weight', None)
        if isinstance(module, MergedLayer) or getattr(
                weight, 'dim', int)() < 2:
            continue
        reasons[inside.get(name, name)] = getattr(
            module, 'float_reason', 'not quantized')
    return reasons


def _prepare_layers(model: nn.Module) -> None:
    if merged_layers(model) and is_merged(model):
        raise ValueError('the model is merged already: use it as it is')
    layers = [layer for layer in model.modules()
              if isinstance(layer, QuantLayer)]
    if not layers:
        raise ValueError('no layer of the model is quantized; convert it with '
                         'gdrq_mm.quantize_ (with weight bits) and load its '
                         'checkpoint')
    phase = layers[0].state.phase
    if phase != 'quantize':
        raise ValueError(f'the model is in its {phase!r} phase, its weights '
                         "are still float: train it through the 'quantize' "
                         'phase first')
    for layer in layers:  # the state need not be a part of what is merged
        layer.state.eval()


def _replace(model: nn.Module, replaced: Dict[nn.Module, nn.Module]
             ) -> nn.Module:
    """Put modules in place of others wherever these are registered."""
    for module in [part for root in (model, *replaced.values())
                   for part in root.modules()]:
        for key, child in list(module._modules.items()):
            if isinstance(child, QuantizationState):
                del module._modules[NAME]
                remove_load_gate(module)
            elif child in replaced:
                module._modules[key] = replaced[child]
    return replaced.get(model, model)
