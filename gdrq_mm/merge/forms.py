"""What takes the place of a quantized layer, by its type."""
import copy
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from ..layers import (
    MERGED_FORMS,
    MergedForm,
    QuantConv2d,
    QuantLayer,
    QuantLinear,
    register_quant_layer,
)
from ..layers.product_operands import PRODUCT_QUANTIZERS, Sites
from ..layers.products import attach_products, detach_products
from .flow import LayerFlow
from .grids import TINY, QuantParams
from .layers import (
    FixedGrid,
    MergedConv2d,
    MergedLinear,
    RoundedInput,
    WeightOnly,
    drop_hooks,
)

register_quant_layer(nn.Conv2d, QuantConv2d, MergedConv2d)
register_quant_layer(nn.Linear, QuantLinear,
                     lambda layer, *args: MergedLinear(*args))


def merged_form(layer: QuantLayer, flow: LayerFlow,
                names: Dict[nn.Module, str]) -> nn.Module:
    """What takes the place of one quantized layer.

    Args:
        layer (QuantLayer): The layer.
        flow (LayerFlow): What its calls showed.
        names (dict[nn.Module, str]): Names of all modules of the model.

    Raises:
        ValueError: See :func:`merge`.
    """
    name = names[layer]
    form = MERGED_FORMS[type(layer)]
    quantizers = [each for each in flow.quantizers if each is not None]
    for quantizer in quantizers:
        if not quantizer.initialized:
            raise ValueError(
                f'{name}: the threshold of its input is not set; load a '
                'trained checkpoint, train, or call gdrq_mm.calibrate')
    if quantizers and None in flow.quantizers:
        raise ValueError(
            f'{name} is called with inputs that are quantized and with some '
            'that are not; give its input bits in its rule, or train it with '
            'site=\'input\'')
    if len(quantizers) > 1:
        raise ValueError(
            f'{name} is called {flow.calls} times with inputs of '
            f'{len(quantizers)} different scales (site=\'relu\'), so that its '
            'codes have no one scale; train it with site=\'input\'')
    if len(layer.input_names) > 1:
        return _fixed(name, layer, 'no integer kernel for '
                      f'{form.float_class.__name__}')
    if layer.past_reads:
        return _fixed(name, layer, 'other code reads its weight')
    if layer.weight_quantizer is None or not quantizers or not flow.calls \
            or form.integer is None or hasattr(layer, PRODUCT_QUANTIZERS):
        return _float_form(name, layer, form, flow, quantizers)
    codes, scale, bias = fold(layer, flow.norm)
    merged = form.integer(
        layer, codes, scale, bias, QuantParams.of(quantizers[0], name),
        layer.weight_quantizer.bits)
    merged.norm = '' if flow.norm is None else names[flow.norm]
    merged.reason = flow.reason
    return merged


def _fixed(name: str, layer: QuantLayer, reason: str) -> QuantLayer:
    """The layer itself, with the values that its quantizers give."""
    layer.float_reason = reason
    if layer.weight_quantizer is not None:
        weight = layer.weight_quantizer(layer.latent_weight).detach()
        layer._parameters[layer.weight_name] = nn.Parameter(
            weight.clone(), requires_grad=False)
        layer.weight_quantizer = None
    for part, quantizer in list(layer.activation_quantizers()):
        setattr(layer, part, FixedGrid(QuantParams.of(quantizer, name))
                if quantizer.initialized else None)
    return layer


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

    Raises:
        ValueError: Integer kernels of 8 bits do not hold the codes.
    """
    codes, scale = _codes_of(layer)
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


def _codes_of(layer: QuantLayer) -> Tuple[Tensor, Tensor]:
    codes, scale = layer.weight_quantizer.codes(layer.weight)
    low, high = map(float, torch.aminmax(codes)) if codes.numel() else (0, 0)
    if low < -128 or high > 127:
        raise ValueError(
            f'{layer.state.name_of(layer)} has weight codes from {low:g} to '
            f'{high:g}, and integer kernels of 8 bits hold -128 to 127: train '
            'it with fewer bits, or correct the codes of its '
            f'{type(layer.weight_quantizer).__name__}')
    return codes, scale


def _float_form(name: str, layer: QuantLayer, form: MergedForm,
                flow: LayerFlow, quantizers: List[nn.Module]) -> nn.Module:
    """A layer that computes in float what ``layer`` does."""
    plain = copy.copy(layer)
    plain.__dict__ = {key: value for key, value in layer.__dict__.items()
                      if key != '_shared'}
    plain.__class__ = form.float_class
    own = {key for key, _ in layer.quantizers()}
    plain._modules = {key: child for key, child in layer._modules.items()
                      if key not in own}
    drop_hooks(plain)
    if hasattr(layer, PRODUCT_QUANTIZERS):  # of the copy's own forward
        operands = getattr(layer, PRODUCT_QUANTIZERS)
        operands.sites = Sites()  # another class, other ways to the products
        detach_products(plain)
        attach_products(plain, operands)
    if layer.weight_quantizer is None:
        plain._parameters = {**layer._parameters, 'weight': nn.Parameter(
            layer.weight.detach().clone(), requires_grad=False)}
    else:
        plain._parameters = {**layer._parameters, 'weight': None}
        codes, scale = _codes_of(layer)
        plain = WeightOnly(plain, codes, scale.flatten().expand(len(codes)),
                           layer.weight_quantizer.bits)
    plain.float_reason = (
        'the example does not call it' if not flow.calls else
        'its input is float' if not quantizers else
        'its weight is float' if layer.weight_quantizer is None else
        f'no integer kernel for {form.float_class.__name__}')
    if not quantizers:
        return plain
    return RoundedInput(QuantParams.of(quantizers[0], name), plain)
