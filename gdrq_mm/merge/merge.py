"""Group scales and batch normalization -> one scale and bias a channel.

Paper: "Low-bit Quantization Needs Good Distribution" (Yu et al.), Fig. 4b.
"""
import copy
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from ..checkpoint import NAME, remove_load_gate
from ..layers import OutputQuantizer, QuantLayer, QuantLinear, QuantReLU
from ..training import QuantizationState
from .flow import LayerFlow, trace_flow
from .layers import (
    TINY,
    MergedConv2d,
    MergedLayer,
    MergedLinear,
    MergedReLU,
    QuantParams,
    RoundedInput,
    RoundedOutput,
    drop_hooks,
    take_hooks,
)


@torch.no_grad()
def merge(model: nn.Module, *args, **kwargs) -> nn.Module:
    """Merge group scales and batch normalization into a copy of ``model``.

    The model runs once: a normalization that alone reads what a layer returns
    is merged into the layer's scale and bias (a negative factor flips the
    signs of the codes, a zero factor leaves codes of zero). Every other
    quantized layer gets an explicit rescale: its group scales as one scale a
    channel. Quantized layers then compute with integer codes of one range.
    Output quantizers stay, also where the module they belong to goes away,
    and so do your own forward hooks.

    Layers that the example does not call, and layers with float weights or
    inputs, stay float and are listed by :func:`float_layers`.

    Args:
        model (nn.Module): Quantized and trained, or a module around such a
            model.
        *args: What the model is called with.
        **kwargs: Likewise.

    Returns:
        nn.Module: A merged copy, in eval mode. Inference only.

    Raises:
        ValueError: Nothing is quantized, weights are still float ('reshape'
            phase), the threshold of a layer's input or of an output is not
            set, or a layer reads inputs of several scales.

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
    merged = copy.deepcopy(model).eval()
    _check_quantized(merged)
    flows, outputs = trace_flow(merged, lambda: merged(*args, **kwargs))
    names = {module: name for name, module in merged.named_modules()}
    replaced: Dict[nn.Module, nn.Module] = {}
    for module, name in names.items():
        if isinstance(module, QuantReLU):
            grids = [_grid_of(each) for each in module.site_quantizers]
            module.__class__ = MergedReLU
            module.start_merged(grids)
        for key, child in list(module.named_children()):
            if isinstance(child, OutputQuantizer):
                module._modules[key] = _rounded_output(
                    name, child, child in outputs)
    for layer, flow in flows.items():
        replaced[layer] = _merged_layer(layer, flow, names)
        take_hooks(layer, replaced[layer])
        if flow.norm is not None:
            replaced[flow.norm] = nn.Identity()
            take_hooks(flow.norm, replaced[flow.norm])
    return _replace(merged, replaced)


def _grid_of(quantizer: nn.Module) -> Optional[QuantParams]:
    return QuantParams.of(quantizer) if quantizer.initialized else None


def _rounded_output(name: str, output: OutputQuantizer, called: bool
                    ) -> RoundedOutput:
    """What takes the place of the output quantizer of a module."""
    grid = _grid_of(output.quantizer)
    if grid is None and called:
        raise ValueError(
            f'{name or "the model"}: the threshold of its output is not set; '
            'load a trained checkpoint, train, or call gdrq_mm.calibrate')
    return RoundedOutput(grid)


def merged_layers(model: nn.Module) -> Dict[str, MergedLayer]:
    """The merged layers of a model, by name."""
    return {name: module for name, module in model.named_modules()
            if isinstance(module, MergedLayer)}


def float_layers(model: nn.Module) -> Dict[str, str]:
    """Layers of a merged model that compute in float, by name, and why."""
    reasons = {}
    for name, module in model.named_modules():
        weight = getattr(module, 'weight', None)
        if isinstance(module, MergedLayer) or getattr(
                weight, 'dim', int)() < 2:
            continue
        reasons[name] = getattr(module, 'float_reason', 'not quantized')
    return reasons


def _check_quantized(model: nn.Module) -> None:
    layers = [layer for layer in model.modules()
              if isinstance(layer, QuantLayer)]
    if not layers:
        raise ValueError('no layer of the model is quantized; convert it with '
                         'gdrq_mm.quantize_ and load its checkpoint')
    phase = layers[0].state.phase
    if phase != 'quantize':
        raise ValueError(f'the model is in its {phase!r} phase, its weights '
                         "are still float: train it through the 'quantize' "
                         'phase first')


def _merged_layer(layer: QuantLayer, flow: LayerFlow,
                  names: Dict[nn.Module, str]) -> nn.Module:
    """What takes the place of one quantized layer."""
    name = names[layer]
    quantizers = [each for each in flow.quantizers if each is not None]
    for quantizer in quantizers:
        if not quantizer.initialized:
            raise ValueError(
                f'{name}: the threshold of its input is not set; load a '
                'trained checkpoint, train, or call gdrq_mm.calibrate')
    if len(quantizers) > 1:
        raise ValueError(
            f'{name} is called {flow.calls} times with inputs of '
            f'{len(quantizers)} different scales (site=\'relu\'), so that its '
            'codes have no one scale; train it with site=\'input\'')
    if layer.weight_quantizer is None or not quantizers or not flow.calls:
        return _float_layer(layer, flow, quantizers)
    grid = QuantParams.of(quantizers[0])
    codes, scale, bias = fold(layer, flow.norm)
    args = codes, scale, bias, grid, layer.weight_quantizer.bits
    linear = isinstance(layer, QuantLinear)
    merged = MergedLinear(*args) if linear else MergedConv2d(layer, *args)
    merged.norm = '' if flow.norm is None else names[flow.norm]
    merged.reason = flow.reason
    return merged


def fold(layer: QuantLayer, norm: Optional[nn.Module]
         ) -> Tuple[Tensor, Tensor, Tensor]:
    """Weight codes, scale and bias of a layer and its normalization.

    Computed in float64. The scale is positive: codes of channels with a
    negative factor change their sign. Channels with a scale of zero (gamma or
    clip value) have codes of zero and a scale of one.

    Args:
        layer (QuantLayer): With a quantized weight.
        norm (nn.Module, optional): A batch normalization in eval mode.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Codes, shaped like the weight; scale
        and bias of shape ``(num_filters, )``, float32.
    """
    codes, scale = layer.weight_quantizer.codes(layer.weight)
    scale = scale.flatten().double().expand(len(codes))
    bias = torch.zeros_like(scale) if layer.bias is None else \
        layer.bias.double()
    if norm is not None:
        factor = 1 / torch.sqrt(norm.running_var.double() + norm.eps)
        if norm.weight is not None:
            factor = factor * norm.weight.double()
        bias = (bias - norm.running_mean.double()) * factor
        if norm.bias is not None:
            bias = bias + norm.bias.double()
        scale = scale * factor
    channels = (-1, *[1] * (codes.dim() - 1))
    codes = codes * scale.sign().view(channels)
    scale = scale.abs()
    empty = scale < TINY  # float32 has no such step
    codes = torch.where(empty.view(channels), 0., codes)
    return codes, torch.where(empty, 1., scale).float(), bias.float()


def _float_layer(layer: QuantLayer, flow: LayerFlow,
                 quantizers: List[nn.Module]) -> nn.Module:
    """The float layer that computes what ``layer`` does."""
    linear = isinstance(layer, QuantLinear)
    plain = copy.copy(layer)
    plain.__dict__ = {key: value for key, value in layer.__dict__.items()
                      if key != '_shared'}
    plain.__class__ = nn.Linear if linear else nn.Conv2d
    weight = layer.weight if layer.weight_quantizer is None else \
        layer.weight_quantizer(layer.weight)
    plain._parameters = {**layer._parameters, 'weight': nn.Parameter(
        weight.detach().clone(), requires_grad=False)}
    plain._modules = {}
    drop_hooks(plain)
    plain.float_reason = (
        'the example does not call it' if not flow.calls else
        'its input is float' if not quantizers else 'its weight is float')
    return RoundedInput(QuantParams.of(quantizers[0]), plain) if quantizers \
        else plain


def _replace(model: nn.Module, replaced: Dict[nn.Module, nn.Module]
             ) -> nn.Module:
    """Put modules in place of others wherever these are registered."""
    for module in list(model.modules()):
        for key, child in list(module._modules.items()):
            if isinstance(child, QuantizationState):
                del module._modules[NAME]
                remove_load_gate(module)
            elif child in replaced:
                module._modules[key] = replaced[child]
    return replaced.get(model, model)
