"""mmcv's deformable convolutions, as graphs hold them.

mmcv computes them by a kernel of its own, which no capture sees through.
torchvision's computes the same, and ONNX has an operator for it.
"""
import contextlib
from typing import Any, Callable, ContextManager, Iterator, Sequence

from torch import Tensor
from torch.nn.modules.utils import _pair

from ...export import detection_ops  # noqa: F401, defines the operator
from ...merge.ops import OPS
from ...modes import is_compiling


def _forward(ctx: Any, x: Tensor, offset: Tensor, weight: Tensor, stride=1,
             padding=0, dilation=1, groups=1, deform_groups=1, bias=False,
             im2col_step=32) -> Tensor:
    return OPS.deform_conv2d(x, offset, weight, None, None, _pair(stride),
                             _pair(padding), _pair(dilation), groups,
                             deform_groups)


def _modulated_forward(ctx: Any, x: Tensor, offset: Tensor, mask: Tensor,
                       weight: Tensor, bias=None, stride=1, padding=0,
                       dilation=1, groups=1, deform_groups=1) -> Tensor:
    stride, padding, dilation = map(_pair, (stride, padding, dilation))
    size = [(length + 2 * pad - apart * (taps - 1) - 1) // step + 1
            for length, pad, apart, taps, step in zip(
                x.shape[2:], padding, dilation, weight.shape[2:], stride)]
    return OPS.deform_conv2d(x, _as_read(offset, size), weight,
                             _as_read(mask, size), bias, stride, padding,
                             dilation, groups, deform_groups)


def _as_read(values: Tensor, size: Sequence[int]) -> Tensor:
    """Offsets or masks, of larger maps than the output, as mmcv reads them.

    mmdet's DyHead has such ones. mmcv takes the first values of an image, one
    after the other, for those of the output's size.
    """
    height, width = size
    if values.shape[2] == height and values.shape[3] == width:
        return values
    channels = values.shape[1]
    return values.flatten(1)[:, :channels * height * width].unflatten(
        1, (channels, height, width))


def deformable_kernels() -> ContextManager:
    """In a capture, mmcv's deformable convolutions are operators of graphs."""
    return _replaced() if is_compiling() else contextlib.nullcontext()


@contextlib.contextmanager
def _replaced() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            from mmcv.ops import deform_conv, modulated_deform_conv
        except ImportError:  # mmcv-lite has none
            pass
        else:
            stack.enter_context(_with_forward(
                deform_conv.DeformConv2dFunction, _forward))
            stack.enter_context(_with_forward(
                modulated_deform_conv.ModulatedDeformConv2dFunction,
                _modulated_forward))
        yield


@contextlib.contextmanager
def _with_forward(function: type, forward: Callable) -> Iterator[None]:
    """An autograd function that computes otherwise; whoever has its ``apply``
    asks the class for its forward."""
    before = vars(function)['forward']
    function.forward = staticmethod(forward)
    try:
        yield
    finally:
        function.forward = before
