"""How the operators of :mod:`gdrq_mm.deploy.ops` look in ONNX."""
from typing import Callable, Dict, Optional

import numpy as np
import torch
from onnx import TensorProto
from onnxscript import opset18 as op
from onnxscript.values import Opset

from .ops import UINT8_OFFSET

QONNX_DOMAIN = 'qonnx.custom_op.general'
_qonnx = Opset(QONNX_DOMAIN, 1)
_ops = torch.ops.gdrq_mm


def _float(value: float):
    return op.Constant(value=_tensor(np.float32(value)))


def _uint8(value: int):
    return op.Constant(value=_tensor(np.uint8(value)))


def _tensor(value):
    from onnx import numpy_helper
    return numpy_helper.from_array(np.array(value))


# -- QDQ: QuantizeLinear -> integer Clip -> DequantizeLinear ------------------
# Codes are uint8 with a zero point: what integer kernels of ONNX Runtime read.


def _to_codes(x, scale: float, low: int, high: int):
    codes = op.QuantizeLinear(x, _float(scale), _uint8(-low))
    if high - low == 255:  # saturates by itself
        return codes
    return op.Clip(codes, _uint8(0), _uint8(high - low))


def _to_float(codes, scale: float, low: int):
    return op.DequantizeLinear(codes, _float(scale), _uint8(-low))


def _parameters(weight, x_scale, w_scale, bias):
    """Dequantized weight and bias of a layer."""
    wide = weight.dtype is not None and weight.dtype.name == 'UINT8'
    zero = op.Expand(
        op.Constant(value=_tensor(np.uint8(UINT8_OFFSET) if wide
                                  else np.int8(0))), op.Shape(w_scale))
    zero_bias = op.Expand(op.Constant(value=_tensor(np.int32(0))),
                          op.Shape(w_scale))
    return (op.DequantizeLinear(weight, w_scale, zero, axis=0),
            op.DequantizeLinear(bias, op.Mul(w_scale, _float(x_scale)),
                                zero_bias, axis=0))


def _conv(x, weight, bias, stride, padding, dilation, groups):
    return op.Conv(x, weight, bias, strides=list(stride), group=groups,
                   pads=[*padding, *padding], dilations=list(dilation))


def _integer_conv2d(codes, weight, x_scale: float, w_scale, bias, low: int,
                    y_scale: float, y_low: int, y_high: int, stride, padding,
                    dilation, groups: int, wide: bool):
    weight, bias = _parameters(weight, x_scale, w_scale, bias)
    y = _conv(_to_float(codes, x_scale, low), weight, bias, stride, padding,
              dilation, groups)
    return _to_codes(y, y_scale, y_low, y_high)


def _gemm(codes, weight, x_scale, w_scale, bias, low):
    weight, bias = _parameters(weight, x_scale, w_scale, bias)
    return op.Gemm(_to_float(codes, x_scale, low), weight, bias, transB=1)


def _as_rows(codes):
    """Linear layers of more than two dimensions."""
    if len(codes.shape) == 2:
        return codes, None
    rows = op.Reshape(codes, op.Constant(value_ints=[-1, codes.shape[-1]]))
    return rows, [*codes.shape[:-1], -1]


def _integer_linear(codes, weight, x_scale: float, w_scale, bias, low: int,
                    y_scale: float, y_low: int, y_high: int, wide: bool):
    rows, shape = _as_rows(codes)
    y = _to_codes(_gemm(rows, weight, x_scale, w_scale, bias, low), y_scale,
                  y_low, y_high)
    return y if shape is None else op.Reshape(
        y, op.Constant(value_ints=shape))


def _integer_linear_float(codes, weight, x_scale: float, w_scale, bias,
                          low: int, wide: bool):
    rows, shape = _as_rows(codes)
    y = _gemm(rows, weight, x_scale, w_scale, bias, low)
    return y if shape is None else op.Reshape(
        y, op.Constant(value_ints=shape))


# -- QONNX: Quant nodes, as FINN reads them -----------------------------------
# Codes are float values on the grid; zero points are 0.


def _quant(x, scale, bits: float, signed: int, narrow: int):
    return _qonnx.Quant(x, scale, _float(0.), _float(bits), signed=signed,
                        narrow=narrow, rounding_mode='ROUND')


def _quant_activation(x, scale: float, low: int, high: int):
    span = max(high, 1)
    bits = span.bit_length() + (low < 0)
    return _quant(x, _float(scale), bits, int(low < 0), int(low < 0))


def qonnx_translations(bits: Dict[str, int]) -> Dict[Callable, Callable]:
    """Translations of merged layers.

    Args:
        bits (dict[str, int]): Of weight codes, by the name of the tensor.
    """

    def weight_of(weight, w_scale, dims):
        scale = op.Reshape(w_scale, op.Constant(value_ints=[-1] + [1] * dims))
        value = op.Mul(op.Cast(weight, to=TensorProto.FLOAT), scale)
        # The codes -1 and 1 of 1-bit weights are ternary ones, which have a
        # zero for channels that normalization has switched off.
        return _quant(value, scale, max(bits[weight.name], 2), 1, 1)

    def conv2d(codes, weight, x_scale: float, w_scale, bias, low: int, stride,
               padding, dilation, groups: int, wide: bool):
        return _conv(codes, weight_of(weight, w_scale, 3), bias, stride,
                     padding, dilation, groups)

    def linear(codes, weight, x_scale: float, w_scale, bias, low: int,
               wide: bool):
        weight = op.Transpose(weight_of(weight, w_scale, 1), perm=[1, 0])
        return op.Add(op.MatMul(codes, weight), bias)

    return {_ops.quantize.default: _quant_activation,
            _ops.dequantize.default: lambda codes, scale, low: op.Identity(
                codes),
            _ops.conv2d.default: conv2d, _ops.linear.default: linear}


QDQ_TRANSLATIONS: Dict[Callable, Callable] = {
    _ops.quantize.default: _to_codes,
    _ops.dequantize.default: _to_float,
    _ops.integer_conv2d.default: _integer_conv2d,
    _ops.integer_linear.default: _integer_linear,
    _ops.integer_linear_float.default: _integer_linear_float,
}
