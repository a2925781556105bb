"""A convolution or linear layer that quantizes its operands on the way.

Quantized copies of inputs and weights live only while they are used: the
backward pass computes them anew from what the float layer saves as well, so
quantization-aware training needs no more memory than float training.
"""
from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels import Grid


class Convolution(NamedTuple):
    """``F.conv2d`` and its gradients."""
    stride: Tuple[int, int]
    padding: Tuple[int, int]
    dilation: Tuple[int, int]
    groups: int

    def forward(self, x, weight, bias):
        return F.conv2d(x, weight, bias, *self)

    def backward(self, grad, x, weight, bias_size, needed):
        return torch.ops.aten.convolution_backward(
            grad, x, weight, bias_size, self.stride, self.padding,
            self.dilation, False, (0, 0), self.groups, needed)


class Linear(NamedTuple):
    """``F.linear`` and its gradients."""

    def forward(self, x, weight, bias):
        return F.linear(x, weight, bias)

    def backward(self, grad, x, weight, bias_size, needed):
        # Like autograd of F.linear, which works on rows.
        rows = grad.reshape(-1, grad.shape[-1])
        return (grad.matmul(weight) if needed[0] else None,
                rows.t().mm(x.reshape(-1, x.shape[-1]))
                if needed[1] else None,
                rows.sum(0) if needed[2] else None)


def _autocast_dtype(x: Tensor) -> Optional[torch.dtype]:
    """The dtype that autocast computes in, None where it is off."""
    kind = x.device.type
    if x.dtype is torch.float64:  # autocast leaves it alone
        return None
    try:
        enabled = torch.is_autocast_enabled(kind)
    except TypeError:  # torch < 2.4
        if kind == 'cpu':
            return (torch.get_autocast_cpu_dtype()
                    if torch.is_autocast_cpu_enabled() else None)
        return (torch.get_autocast_gpu_dtype()
                if torch.is_autocast_enabled() else None)
    return torch.get_autocast_dtype(kind) if enabled else None


def _own_clip(grid: Optional[Grid]) -> Optional[Grid]:
    """Its clip value may move before the backward pass."""
    return grid and grid._replace(clip=grid.clip.clone(), seen=None)


def _operand(x: Tensor, grid: Optional[Grid], dtype: Optional[torch.dtype],
             slot: str) -> Tensor:
    if grid is not None:
        x = grid.quantize(x, slot)
    return x if dtype is None else x.to(dtype)


class _Quantized(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, weight, bias, operation, input_grid, weight_grid):
        dtype = _autocast_dtype(x)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, weight)
            ctx.grids = _own_clip(input_grid), _own_clip(weight_grid)
            ctx.operation, ctx.dtype = operation, dtype
            ctx.bias = None if bias is None else (list(bias.shape), bias.dtype)
        return operation.forward(
            _operand(x, input_grid, dtype, 'input'),
            _operand(weight, weight_grid, dtype, 'weight'),
            bias if bias is None or dtype is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        input_grid, weight_grid = ctx.grids
        for_x, for_weight, for_bias = needed = list(ctx.needs_input_grad[:3])
        # Of an operand that the asked gradients do not depend on, only the
        # sizes matter.
        grad_x, grad_weight, grad_bias = ctx.operation.backward(
            grad,
            _operand(x, input_grid if for_weight else None, ctx.dtype,
                     'input'),
            _operand(weight, weight_grid if for_x else None, ctx.dtype,
                     'weight'),
            ctx.bias and ctx.bias[0], needed)
        if for_x:
            grad_x = grad_x.to(x.dtype)
            grad_x = input_grid.gradient(grad_x, x) if input_grid else grad_x
        if for_weight:
            grad_weight = grad_weight.to(weight.dtype)
            if weight_grid:
                grad_weight = weight_grid.gradient(grad_weight, weight)
        if for_bias:
            grad_bias = grad_bias.to(ctx.bias[1])
        return grad_x, grad_weight, grad_bias, None, None, None


def run(operation, x: Tensor, weight: Tensor, bias: Optional[Tensor],
        input_grid: Optional[Grid], weight_grid: Optional[Grid]) -> Tensor:
    """Compute ``operation`` on quantized operands.

    The gradient is straight-through, see
    :func:`gdrq_mm.functional.linear_quantize`; there is no second one.

    Args:
        operation (Convolution or Linear): What to compute.
        x (Tensor): The input.
        weight (Tensor): The weight.
        bias (Tensor, optional): Stays float.
        input_grid (Grid, optional): None leaves the input as it is.
        weight_grid (Grid, optional): None leaves the weight as it is.
    """
    return _Quantized.apply(x, weight, bias, operation, input_grid,
                            weight_grid)
