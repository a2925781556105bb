"""Operators of merged and of integer models.

They are opaque to ``torch.export``, so that an exported graph shows every
quantizer and every quantized layer as one node.

*Codes* are integers in float32, counted from that of zero: ``x ~ codes *
scale``. A zero point is a matter of how codes are stored, see
:mod:`gdrq_mm.export.qdq_ops`. ``weight`` holds int8 codes, or uint8 ones
with an offset of 128. Accumulators are exact: sums of integer products in
float32 as long as they stay below 2^24, else (``wide``) in float64.
"""
import contextlib
from typing import ContextManager, List

import torch
import torch.nn.functional as F
from torch import Tensor

UINT8_OFFSET = 128  # of weight codes that are stored as uint8

_CONV = 'int[] stride, int[] padding, int[] dilation, int groups, bool wide'
_MERGED = 'Tensor codes, Tensor weight, float x_scale, Tensor w_scale, ' \
    'Tensor bias, int low'
_INTEGER = _MERGED + ', float y_scale, int y_low, int y_high'
_library = torch.library.Library('gdrq_mm', 'DEF')
OPS = torch.ops.gdrq_mm  # the operators, by name


def register(name: str, arguments: str):
    """Make a function the operator ``gdrq_mm::name``."""
    _library.define(f'{name}({arguments}) -> Tensor')

    def define(function):
        _library.impl(name, function, 'CompositeExplicitAutograd')
        return function

    return define


def _integer_weight(weight: Tensor, wide: bool) -> Tensor:
    """Weight codes in a dtype that accumulates exactly."""
    codes = weight.to(torch.float64 if wide else torch.float32)
    return codes - UINT8_OFFSET if weight.dtype == torch.uint8 else codes


def _per_channel(values: Tensor, conv: bool) -> Tensor:
    """One value per channel, ready to broadcast over the result."""
    return values.view(-1, 1, 1) if conv else values.view(-1)


@register('quantize', 'Tensor x, float scale, int low, int high')
def quantize(x: Tensor, scale: float, low: int, high: int) -> Tensor:
    """``clamp(round(x / scale), low, high)``, ties to even."""
    return torch.clamp(torch.round(x.float() / scale), low, high)


@register('dequantize', 'Tensor codes, float scale, int low')
def dequantize(codes: Tensor, scale: float, low: int) -> Tensor:
    """``codes * scale``; ``low`` is the least code that there may be."""
    return codes * scale


@register('dequantize_weight', 'Tensor codes, Tensor w_scale, int bits')
def dequantize_weight(codes: Tensor, w_scale: Tensor, bits: int) -> Tensor:
    """``codes * w_scale``; one scale per filter, codes of ``bits``."""
    return codes * w_scale.view(-1, *[1] * (codes.dim() - 1))


@register('pad_codes', 'Tensor codes, SymInt[] pad, int low')
def pad_codes(codes: Tensor, pad: List[int], low: int) -> Tensor:
    """Codes with codes of zero around them, ``pad`` as ``F.pad`` takes it;
    ``low`` is the least code that there may be."""
    return F.pad(codes, pad)


def _conv_accumulate(codes, weight, stride, padding, dilation, groups, wide):
    weight = _integer_weight(weight, wide)
    with _without_autocast(codes):
        return F.conv2d(codes.to(weight.dtype), weight, None, stride, padding,
                        dilation, groups)


def _linear_accumulate(codes, weight, wide):
    weight = _integer_weight(weight, wide)
    with _without_autocast(codes):
        return F.linear(codes.to(weight.dtype), weight)


def _without_autocast(codes: Tensor) -> ContextManager:
    # Sums of half precision would not be exact.
    return contextlib.nullcontext() if codes.is_meta else torch.autocast(
        codes.device.type, enabled=False)


def _scale(acc, x_scale, w_scale, bias, conv):
    scale = (x_scale * w_scale).to(acc.dtype)
    bias = bias.to(acc.dtype)
    return (acc * _per_channel(scale, conv)
            + _per_channel(bias, conv)).float()


def _requantize(acc, x_scale, w_scale, bias, y_scale, low, high, conv):
    # As integer kernels do it, float32 rounding included: the sum is an int32
    # that is converted, multiplied and rounded to even.
    acc = acc + _per_channel(bias.to(acc.dtype), conv)
    multiplier = x_scale * w_scale / y_scale
    return torch.clamp(
        torch.round(acc.float() * _per_channel(multiplier, conv)), low, high)


@register('conv2d', f'{_MERGED}, int bits, {_CONV}')
def conv2d(codes: Tensor, weight: Tensor, x_scale: float, w_scale: Tensor,
           bias: Tensor, low: int, bits: int, stride: List[int],
           padding: List[int], dilation: List[int], groups: int, wide: bool
           ) -> Tensor:
    """Merged convolution: codes in, float out.

    Args:
        codes (Tensor): Shape ``(N, C, H, W)``.
        weight (Tensor): int8 codes, shape ``(O, C / groups, kH, kW)``.
        x_scale (float): Scale of ``codes``.
        w_scale (Tensor): Shape ``(O, )``, normalization included.
        bias (Tensor): float32, shape ``(O, )``.
        low (int): The least code that there may be.
        bits (int): Bit width of the weight codes.
        wide (bool): Accumulate in float64.
    """
    acc = _conv_accumulate(codes, weight, stride, padding, dilation, groups,
                           wide)
    return _scale(acc, x_scale, w_scale, bias, True)


@register('linear', f'{_MERGED}, int bits, bool wide')
def linear(codes: Tensor, weight: Tensor, x_scale: float, w_scale: Tensor,
           bias: Tensor, low: int, bits: int, wide: bool) -> Tensor:
    """Merged linear layer, see :func:`conv2d`."""
    acc = _linear_accumulate(codes, weight, wide)
    return _scale(acc, x_scale, w_scale, bias, False)


@register('integer_conv2d', f'{_INTEGER}, {_CONV}')
def integer_conv2d(codes: Tensor, weight: Tensor, x_scale: float,
                   w_scale: Tensor, bias: Tensor, low: int, y_scale: float,
                   y_low: int, y_high: int, stride: List[int],
                   padding: List[int], dilation: List[int], groups: int,
                   wide: bool) -> Tensor:
    """Integer convolution: codes in, codes out.

    Args:
        bias (Tensor): int32, in steps of ``x_scale * w_scale``.
        y_scale (float): Scale of the codes that come out.
        y_low (int): Their least value; 0 is a ReLU as well.
        y_high (int): Their greatest value.
    """
    acc = _conv_accumulate(codes, weight, stride, padding, dilation, groups,
                           wide)
    return _requantize(acc, x_scale, w_scale, bias, y_scale, y_low, y_high,
                       True)


@register('integer_linear', f'{_INTEGER}, bool wide')
def integer_linear(codes: Tensor, weight: Tensor, x_scale: float,
                   w_scale: Tensor, bias: Tensor, low: int, y_scale: float,
                   y_low: int, y_high: int, wide: bool) -> Tensor:
    """Integer linear layer, see :func:`integer_conv2d`."""
    acc = _linear_accumulate(codes, weight, wide)
    return _requantize(acc, x_scale, w_scale, bias, y_scale, y_low, y_high,
                       False)


@register('integer_linear_float', f'{_MERGED}, bool wide')
def integer_linear_float(codes: Tensor, weight: Tensor, x_scale: float,
                         w_scale: Tensor, bias: Tensor, low: int, wide: bool
                         ) -> Tensor:
    """Integer linear layer whose int32 sums come out as float values."""
    acc = _linear_accumulate(codes, weight, wide) + bias
    return acc.float() * (x_scale * w_scale)
