"""The peers that install beside us, on the very same model.

Both quantize weights per filter and inputs a tensor, with the bits asked for.
"""
import torch
from torch import nn

from gdrq_mm.functional import num_levels
from gdrq_mm.plan import LayerTrace


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition('.')
    setattr(model.get_submodule(parent), attribute, module)


def to_brevitas(model: nn.Module, name: str, trace: LayerTrace,
                bits: int) -> None:
    """Put a Brevitas layer into the place of a convolution or linear one."""
    import brevitas.nn as qnn
    from brevitas.quant import (
        Int8ActPerTensorFloat,
        Int8WeightPerChannelFloat,
        Uint8ActPerTensorFloat,
    )
    layer = model.get_submodule(name)
    schemes = dict(
        weight_quant=Int8WeightPerChannelFloat, weight_bit_width=bits,
        input_quant=Int8ActPerTensorFloat if trace.signed else
        Uint8ActPerTensorFloat, input_bit_width=bits,
        bias=layer.bias is not None)
    if isinstance(layer, nn.Linear):
        new = qnn.QuantLinear(layer.in_features, layer.out_features,
                              **schemes)
    else:
        new = qnn.QuantConv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size,
            stride=layer.stride, padding=layer.padding,
            dilation=layer.dilation, groups=layer.groups, **schemes)
    new.weight, new.bias = layer.weight, layer.bias
    _replace(model, name, new)


def to_torch_ao(model: nn.Module, name: str, trace: LayerTrace,
                bits: int) -> None:
    """Add torch.ao's fused observers and fake quantizers."""
    from torch.ao.quantization import (
        FusedMovingAvgObsFakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
    )
    layer = model.get_submodule(name)
    levels = num_levels(bits, trace.signed)
    layer.input_fake_quant = FusedMovingAvgObsFakeQuantize(
        MovingAverageMinMaxObserver,
        quant_min=-levels if trace.signed else 0, quant_max=levels,
        dtype=torch.qint8 if trace.signed else torch.quint8,
        qscheme=torch.per_tensor_symmetric if trace.signed else
        torch.per_tensor_affine)
    layer.weight_fake_quant = FusedMovingAvgObsFakeQuantize(
        MovingAveragePerChannelMinMaxObserver,
        quant_min=-num_levels(bits), quant_max=num_levels(bits),
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, ch_axis=0)
    if isinstance(layer, nn.Linear):
        def forward(x):
            return nn.functional.linear(
                layer.input_fake_quant(x),
                layer.weight_fake_quant(layer.weight), layer.bias)
    else:
        def forward(x):
            return layer._conv_forward(
                layer.input_fake_quant(x),
                layer.weight_fake_quant(layer.weight), layer.bias)
    layer.forward = forward


PEERS = dict(brevitas=to_brevitas, torch_ao=to_torch_ao)
