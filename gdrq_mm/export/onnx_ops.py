"""How the operators of :mod:`gdrq_mm.merge.ops` look in ONNX."""
from typing import Callable, Dict

import numpy as np
from onnx import TensorProto, numpy_helper
from onnx.defs import OpSchema
from onnxscript import opset18 as op
from onnxscript.values import Op, Opset

from ..merge.ops import OPS, UINT8_OFFSET
from . import detection_ops  # noqa: F401, defines OPS.nms, OPS.top

QONNX_DOMAIN = 'qonnx.custom_op.general'


def _float(value: float):
    return op.Constant(value=_tensor(np.float32(value)))


def _uint8(value: int):
    return op.Constant(value=_tensor(np.uint8(value)))


def _tensor(value):
    return numpy_helper.from_array(np.array(value))


# -- QDQ: QuantizeLinear -> integer Clip -> DequantizeLinear ------------------
# Codes are uint8 with a zero point: what integer kernels of ONNX Runtime read.


def _to_codes(x, scale: float, low: int, high: int):
    codes = op.QuantizeLinear(x, _float(scale), _uint8(-low))
    # Of codes that become other codes, ONNX Runtime would make one rounding.
    again = x.producer() is not None and \
        x.producer().op_type == 'DequantizeLinear'
    if high - low == 255 and not again:  # saturates by itself
        return codes
    return op.Clip(codes, _uint8(0), _uint8(high - low))


def _to_float(codes, scale: float, low: int):
    return op.DequantizeLinear(codes, _float(scale), _uint8(-low))


def _parameters(weight, x_scale, w_scale, bias, zeros: bool = False):
    """Dequantized weight and bias of a layer.

    Args:
        zeros (bool): Write zero points that are zero: QGemm wants them.
    """
    def points(value):
        return op.Expand(op.Constant(value=_tensor(value)),
                         op.Shape(w_scale)),

    shifted = weight.dtype is not None and weight.dtype.name == 'UINT8'
    zero = points(np.uint8(UINT8_OFFSET)) if shifted else \
        points(np.int8(0)) if zeros else ()
    zero_bias = points(np.int32(0)) if zeros else ()
    return (op.DequantizeLinear(weight, w_scale, *zero, axis=0),
            op.DequantizeLinear(bias, op.Mul(w_scale, _float(x_scale)),
                                *zero_bias, axis=0))


def _conv(x, weight, bias, stride, padding, dilation, groups, kernel):
    # Readers such as FINN do not look at the weight for the kernel's shape.
    return op.Conv(x, weight, bias, strides=list(stride), group=groups,
                   pads=[*padding, *padding], dilations=list(dilation),
                   kernel_shape=list(kernel))


def _integer_conv2d(codes, weight, x_scale: float, w_scale, bias, low: int,
                    y_scale: float, y_low: int, y_high: int, stride, padding,
                    dilation, groups: int, wide: bool):
    kernel = weight.shape[2:]
    weight, bias = _parameters(weight, x_scale, w_scale, bias)
    y = _conv(_to_float(codes, x_scale, low), weight, bias, stride, padding,
              dilation, groups, kernel)
    return _to_codes(y, y_scale, y_low, y_high)


def _gemm(codes, weight, x_scale, w_scale, bias, low):
    weight, bias = _parameters(weight, x_scale, w_scale, bias, zeros=True)
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
# Codes are float values on the grid; zero points are 0, unless a quantizer
# has one.


_Quant = Op(Opset(QONNX_DOMAIN, 1), 'Quant', OpSchema(
    'Quant', QONNX_DOMAIN, 1,
    inputs=[OpSchema.FormalParameter(name, 'tensor(float)')
            for name in ('x', 'scale', 'zeropt', 'bitwidth')],
    outputs=[OpSchema.FormalParameter('y', 'tensor(float)')],
    attributes=[OpSchema.Attribute('signed', OpSchema.AttrType.INT),
                OpSchema.Attribute('narrow', OpSchema.AttrType.INT),
                OpSchema.Attribute('rounding_mode',
                                   OpSchema.AttrType.STRING)]))


def _quant(x, scale, bits: float, signed: int, narrow: int, zero: int = 0):
    return _Quant(x, scale, _float(zero), _float(bits), signed=signed,
                  narrow=narrow, rounding_mode='ROUND')


def _quant_activation(x, scale: float, low: int, high: int):
    if high == low == 0:  # Quant has no range of zero alone
        x, high = op.Mul(x, _float(0.)), 1
    signed = int(low < 0 < high and -low in (high, high + 1))
    narrow = int(signed and -low == high)
    # Codes with another zero point are stored from 0 on.
    zero = 0 if signed else -low
    bits = high.bit_length() + 1 if signed else (high - low).bit_length()
    most = 2**(bits - signed) - 1 - zero
    least = narrow - 2**(bits - 1) if signed else -zero
    if (least, most) != (low, high):
        x = op.Clip(x, _float(low * scale), _float(high * scale))
    return _quant(x, _float(scale), bits, signed, narrow, zero)


def _quant_weight(weight, w_scale, bits: int):
    # The codes -1 and 1 of 1-bit weights are ternary ones, which have a zero
    # for channels that normalization has switched off.
    return _quant(weight, w_scale, max(bits, 2), 1, 1)


def _dequantize_weight(weight, w_scale, bits: int):
    # What any float layer reads; a runtime computes it once, at loading.
    shape = [-1, *[1] * (len(weight.shape) - 1)]
    return op.Mul(op.Cast(weight, to=TensorProto.FLOAT), op.Reshape(
        w_scale, op.Constant(value_ints=shape)))


def _pad_codes(codes, pad, low: int):
    # F.pad begins with the last axis.
    pairs = list(zip(pad[::2], pad[1::2]))[::-1]
    unpadded = [0] * (len(codes.shape) - len(pairs))
    pads = [*unpadded, *(first for first, _ in pairs),
            *unpadded, *(last for _, last in pairs)]
    return op.Pad(codes, op.Constant(value_ints=pads), _uint8(-low))


def _merged_conv2d(codes, weight, x_scale: float, w_scale, bias, low: int,
                   bits: int, stride, padding, dilation, groups: int,
                   wide: bool):
    return _conv(codes, _quant_weight(weight, w_scale, bits), bias, stride,
                 padding, dilation, groups, weight.shape[2:])


def _merged_linear(codes, weight, x_scale: float, w_scale, bias, low: int,
                   bits: int, wide: bool):
    weight = op.Transpose(_quant_weight(weight, w_scale, bits),
                          perm=[1, 0])
    return op.Add(op.MatMul(codes, weight), bias)


def _same(codes, scale: float, low: int):
    return op.Identity(codes)


def _ints(*values: int):
    return op.Constant(value_ints=list(values))


def _best(scores, size: int):
    """Values and indices of the ``size`` greatest scores of every row; there
    may be fewer, then the index is -1."""
    batch = op.Shape(scores, start=0, end=1)
    nothing = op.Expand(_float(-np.inf), op.Concat(
        batch, _ints(size), axis=0))
    values, index = op.TopK(op.Concat(scores, nothing, axis=1), _ints(size))
    return op.Where(op.IsInf(values), _ints(-1), index)


def _nms(boxes, scores, iou_threshold: float, score_threshold: float,
         size: int):
    kept = op.NonMaxSuppression(
        boxes, op.Unsqueeze(scores, _ints(1)), _ints(size),
        _float(iou_threshold), _float(score_threshold))
    # Image and box; their scores, the rest scores nothing.
    pairs = op.Gather(kept, _ints(0, 2), axis=1)
    nothing = op.Expand(_float(-np.inf), op.Shape(scores))
    return _best(op.ScatterND(nothing, pairs, op.GatherND(scores, pairs)),
                 size)


def _top(scores, size: int):
    return _best(scores, size)


COMMON_TRANSLATIONS: Dict[Callable, Callable] = {
    OPS.nms.default: _nms, OPS.top.default: _top}
QDQ_TRANSLATIONS: Dict[Callable, Callable] = {
    **COMMON_TRANSLATIONS,
    OPS.quantize.default: _to_codes,
    OPS.dequantize.default: _to_float,
    OPS.pad_codes.default: _pad_codes,
    OPS.dequantize_weight.default: _dequantize_weight,
    OPS.integer_conv2d.default: _integer_conv2d,
    OPS.integer_linear.default: _integer_linear,
    OPS.integer_linear_float.default: _integer_linear_float,
}

QONNX_TRANSLATIONS: Dict[Callable, Callable] = {
    **COMMON_TRANSLATIONS,
    OPS.quantize.default: _quant_activation,
    OPS.dequantize.default: _same,
    OPS.conv2d.default: _merged_conv2d,
    OPS.linear.default: _merged_linear,
    OPS.dequantize_weight.default: _quant_weight,
}
