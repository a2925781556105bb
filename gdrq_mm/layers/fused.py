"""A convolution or linear layer that quantizes its operands on the way.

Quantized copies of inputs and weights live only while they are used: the
backward pass computes them again from what the float layer saves as well, so
quantization-aware training needs no more memory than float training.
"""
from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """``F.linear`` of rows and its gradients."""

    def forward(self, x, weight, bias):
        return F.linear(x, weight, bias)

    def backward(self, grad, x, weight, bias_size, needed):
        return (grad.mm(weight) if needed[0] else None,
                grad.t().mm(x) if needed[1] else None,
                grad.sum(0) if needed[2] else None)


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


def _operand(x: Tensor, grid: Optional[Grid], dtype: Optional[torch.dtype],
             slot: str) -> Tensor:
    if grid is not None:
        x = grid.quantize(x, slot)
    return x if dtype is None else x.to(dtype)


def refuse_second_derivative() -> None:
    """To be called in a backward pass.

    Raises:
        RuntimeError: It was started with ``create_graph=True``.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            'quantized layers have no second derivative (create_graph=True): '
            'rounding has none; penalize gradients of the float model')


class _Quantized(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, weight, bias, operation, input_grid, weight_grid):
        dtype = _autocast_dtype(x)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, weight)
            # A threshold may move before the backward pass; that of the
            # weight moves with the weight only.
            ctx.grids = input_grid and input_grid._replace(
                clip=input_grid.clip.clone(), seen=None), weight_grid
            ctx.operation, ctx.dtype = operation, dtype
            ctx.bias = None if bias is None else (list(bias.shape), bias.dtype)
        return operation.forward(
            _operand(x, input_grid, dtype, 'input'),
            _operand(weight, weight_grid, dtype, 'weight'),
            bias if bias is None or dtype is None else bias.to(dtype))

    @staticmethod
    def backward(ctx, grad):
        refuse_second_derivative()
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
        if ctx.dtype is not None:  # autocast: back to what came in
            grad_x = grad_x.to(x.dtype) if for_x else None
            grad_weight = grad_weight.to(weight.dtype) if for_weight else None
            grad_bias = grad_bias.to(ctx.bias[1]) if for_bias else None
        if for_x and input_grid:
            grad_x = input_grid.gradient(grad_x, x)
        if for_weight and weight_grid:
            grad_weight = weight_grid.gradient(grad_weight, weight)
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
    if not isinstance(operation, Linear) or x.dim() == 2:
        return _Quantized.apply(x, weight, bias, operation, input_grid,
                                weight_grid)
    # Of other shapes F.linear gives a view of its rows; a view that comes out
    # of an autograd function could not be modified in place.
    rows = _Quantized.apply(x.reshape(-1, x.shape[-1]), weight, bias,
                            operation, input_grid, weight_grid)
    return rows.view(*x.shape[:-1], rows.shape[-1])
