"""How the operators of merged models look in QONNX, and what all files
share."""
from typing import Callable, Dict

import numpy as np
from onnx import numpy_helper
from onnx.defs import OpSchema
from onnxscript import opset18 as op
from onnxscript import opset19
from onnxscript.values import Op, Opset

from ..merge.ops import OPS
from . import detection_ops  # noqa: F401, defines OPS.nms, OPS.top

QONNX_DOMAIN = 'qonnx.custom_op.general'


def constant(value):
    """An array or a number of numpy in a graph."""
    return op.Constant(value=numpy_helper.from_array(np.array(value)))


def _float(value: float):
    return constant(np.float32(value))


def integers(values):
    """A vector of integers, some of which may be values of the graph."""
    if all(isinstance(each, int) for each in values):
        return op.Constant(value_ints=list(values))
    one = op.Constant(value_ints=[1])
    return op.Concat(*[
        op.Constant(value_ints=[each]) if isinstance(each, int) else
        op.Reshape(each, one) for each in values], axis=0)


def convolution(x, weight, bias, stride, padding, dilation, groups, kernel):
    """A Conv that says the shape of its kernel: readers such as FINN do not
    look at the weight for it."""
    return op.Conv(x, weight, bias, strides=list(stride), group=groups,
                   pads=[*padding, *padding], dilations=list(dilation),
                   kernel_shape=list(kernel))


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


def _merged_conv2d(codes, weight, x_scale: float, w_scale, bias, low: int,
                   bits: int, stride, padding, dilation, groups: int,
                   wide: bool):
    return convolution(
        codes, _quant_weight(weight, w_scale, bits), bias, stride, padding,
        dilation, groups, weight.shape[2:])


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


def _deform_conv2d(x, offset, weight, mask, bias, stride, padding, dilation,
                   groups: int, offset_groups: int):
    return opset19.DeformConv(
        x, weight, offset, bias, mask, strides=list(stride),
        pads=[*padding, *padding], dilations=list(dilation), group=groups,
        offset_group=offset_groups, kernel_shape=list(weight.shape[2:]))


COMMON_TRANSLATIONS: Dict[Callable, Callable] = {
    OPS.nms.default: _nms, OPS.top.default: _top,
    OPS.deform_conv2d.default: _deform_conv2d}
QONNX_TRANSLATIONS: Dict[Callable, Callable] = {
    **COMMON_TRANSLATIONS,
    OPS.quantize.default: _quant_activation,
    OPS.dequantize.default: _same,
    OPS.conv2d.default: _merged_conv2d,
    OPS.linear.default: _merged_linear,
    OPS.dequantize_weight.default: _quant_weight,
}
