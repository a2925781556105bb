"""How the operators of integer models look in ONNX: QDQ.

Codes are stored in 8 bits. As uint8 with a zero point and an integer ``Clip``
they are what integer kernels of ONNX Runtime read; as int8 without zero
points, clipped by saturation or a float ``Relu`` or ``Clip`` before the
quantizer and with float biases, what TensorRT reads.
"""
from typing import Callable, Dict, NamedTuple

import numpy as np
from onnx import TensorProto
from onnxscript import opset18 as op

from ..merge.ops import OPS, UINT8_OFFSET
from .onnx_ops import (
    COMMON_TRANSLATIONS,
    constant,
    convolution,
    integers,
)


class Container(NamedTuple):
    """How codes are stored.

    Args:
        to_codes (callable): Float values, scale, least and greatest code ->
            stored codes.
        point (callable): Least code -> what a code of zero is stored as.
        parameters (callable): Weight, scale of the input, scales of the
            weight, bias -> both as a layer reads them.
        rounded (callable): Codes that are read as float values -> the same,
            so that no runtime leaves out their rounding.
    """
    to_codes: Callable
    point: Callable
    parameters: Callable
    rounded: Callable


def _scale(value: float):
    return constant(np.float32(value))


# -- uint8 --------------------------------------------------------------------


def _uint8_point(low: int):
    return constant(np.uint8(-low))


def _to_uint8(x, scale: float, low: int, high: int):
    codes = op.QuantizeLinear(x, _scale(scale), _uint8_point(low))
    # Of codes that become other codes, ONNX Runtime would make one rounding.
    again = x.producer() is not None and \
        x.producer().op_type == 'DequantizeLinear'
    if high - low == 255 and not again:  # saturates by itself
        return codes
    return op.Clip(codes, constant(np.uint8(0)),
                   constant(np.uint8(high - low)))


def _rounded_uint8(codes):
    # OpenVINO joins a layer with the sum, or product, that reads its codes,
    # and leaves out their rounding: a clip, which ONNX Runtime runs in no
    # measurable time, stands between.
    maker = codes.producer()
    if maker is None or maker.op_type != 'QuantizeLinear':
        return codes
    layer = maker.inputs[0].producer()
    if layer is None or layer.op_type not in ('Conv', 'Gemm'):
        return codes
    return op.Clip(codes, constant(np.uint8(0)), constant(np.uint8(255)))


def _integer_parameters(weight, x_scale, w_scale, bias, zeros: bool = False):
    """Dequantized weight and bias of a layer.

    Args:
        zeros (bool): Write zero points that are zero: QGemm wants them.
    """
    def points(value):
        return op.Expand(constant(value), op.Shape(w_scale)),

    shifted = weight.dtype is not None and weight.dtype.name == 'UINT8'
    zero = points(np.uint8(UINT8_OFFSET)) if shifted else \
        points(np.int8(0)) if zeros else ()
    zero_bias = points(np.int32(0)) if zeros else ()
    return (op.DequantizeLinear(weight, w_scale, *zero, axis=0),
            op.DequantizeLinear(bias, op.Mul(w_scale, _scale(x_scale)),
                                *zero_bias, axis=0))


# -- int8 ---------------------------------------------------------------------


def _int8_point(low: int):
    return constant(np.int8(0))


def _to_int8(x, scale: float, low: int, high: int):
    if (low, high) == (0, 127):
        x = op.Relu(x)
    elif (low, high) != (-128, 127):
        x = op.Clip(x, _scale(low * scale), _scale(high * scale))
    return op.QuantizeLinear(x, _scale(scale), _int8_point(low))


def _float_bias(weight, x_scale, w_scale, bias, zeros: bool = False):
    """Dequantized weight and float bias of a layer."""
    points = op.Expand(constant(np.int8(0)), op.Shape(w_scale))
    return (op.DequantizeLinear(weight, w_scale, points, axis=0),
            op.Mul(op.Cast(bias, to=TensorProto.FLOAT),
                   op.Mul(w_scale, _scale(x_scale))))


# -- layers -------------------------------------------------------------------


def _dequantize_weight(weight, w_scale, bits: int):
    # What any float layer reads; a runtime computes it once, at loading.
    shape = [-1, *[1] * (len(weight.shape) - 1)]
    return op.Mul(op.Cast(weight, to=TensorProto.FLOAT), op.Reshape(
        w_scale, op.Constant(value_ints=shape)))


def _as_rows(codes):
    """Linear layers of more than two dimensions."""
    if len(codes.shape) == 2:
        return codes, None
    rows = op.Reshape(codes, op.Constant(value_ints=[-1, codes.shape[-1]]))
    last = op.Constant(value_ints=[-1])
    if all(isinstance(side, int) for side in codes.shape):
        return rows, op.Constant(value_ints=[*codes.shape[:-1], -1])
    return rows, op.Concat(op.Shape(codes, end=-1), last, axis=0)


def _shaped(y, shape):
    return y if shape is None else op.Reshape(y, shape)


def _translations(container: Container) -> Dict[Callable, Callable]:

    def to_float(codes, scale: float, low: int):
        return op.DequantizeLinear(codes, _scale(scale), container.point(low))

    def dequantize(codes, scale: float, low: int):
        return to_float(container.rounded(codes), scale, low)

    def pad_codes(codes, pad, low: int):
        # F.pad begins with the last axis.
        pairs = list(zip(pad[::2], pad[1::2]))[::-1]
        unpadded = [0] * (len(codes.shape) - len(pairs))
        pads = [*unpadded, *(first for first, _ in pairs),
                *unpadded, *(last for _, last in pairs)]
        return op.Pad(codes, integers(pads),
                      container.point(low))

    def integer_conv2d(codes, weight, x_scale: float, w_scale, bias, low: int,
                       y_scale: float, y_low: int, y_high: int, stride,
                       padding, dilation, groups: int, wide: bool):
        kernel = weight.shape[2:]
        weight, bias = container.parameters(weight, x_scale, w_scale, bias)
        y = convolution(to_float(codes, x_scale, low), weight, bias, stride,
                        padding, dilation, groups, kernel)
        return container.to_codes(y, y_scale, y_low, y_high)

    def gemm(rows, weight, x_scale, w_scale, bias, low):
        weight, bias = container.parameters(weight, x_scale, w_scale, bias,
                                            zeros=True)
        return op.Gemm(to_float(rows, x_scale, low), weight, bias, transB=1)

    def integer_linear(codes, weight, x_scale: float, w_scale, bias, low: int,
                       y_scale: float, y_low: int, y_high: int, wide: bool):
        rows, shape = _as_rows(codes)
        y = gemm(rows, weight, x_scale, w_scale, bias, low)
        return _shaped(container.to_codes(y, y_scale, y_low, y_high), shape)

    def integer_linear_float(codes, weight, x_scale: float, w_scale, bias,
                             low: int, wide: bool):
        rows, shape = _as_rows(codes)
        return _shaped(gemm(rows, weight, x_scale, w_scale, bias, low), shape)

    return {
        **COMMON_TRANSLATIONS,
        OPS.quantize.default: container.to_codes,
        OPS.dequantize.default: dequantize,
        OPS.pad_codes.default: pad_codes,
        OPS.dequantize_weight.default: _dequantize_weight,
        OPS.integer_conv2d.default: integer_conv2d,
        OPS.integer_linear.default: integer_linear,
        OPS.integer_linear_float.default: integer_linear_float}


QDQ_TRANSLATIONS = dict(
    uint8=_translations(Container(_to_uint8, _uint8_point,
                                  _integer_parameters, _rounded_uint8)),
    int8=_translations(Container(_to_int8, _int8_point, _float_bias,
                                 lambda codes: codes)))
