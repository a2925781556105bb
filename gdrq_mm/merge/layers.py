"""Layers of merged models: integer codes, one scale and bias per channel."""
from collections import OrderedDict
from typing import List, Optional, Set

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import InputFirst, ProductOperands, QuantReLU
from ..layers.output import OUTPUT_QUANTIZER
from ..layers.product_operands import Sites
from .grids import KeepsGrids, QuantParams
from .ops import OPS

FLOAT32_EXACT = 2**24  # integers below it are exact in float32


class MergedLayer(KeepsGrids, InputFirst, nn.Module):
    """What merged convolutions and linear layers share.

    ``y = sum(codes of x * codes of w) * (x_scale * w_scale) + bias`` (the
    form of the paper's Fig. 4b): one range of codes for all groups, whose
    scales went into ``w_scale`` together with the normalization.

    Args:
        codes (Tensor): Weight codes.
        w_scale (Tensor): Positive, shape ``(num_filters, )``.
        bias (Tensor): float32, shape ``(num_filters, )``.
        grid (QuantParams): Grid of the input.
        bits (int): Bit width of the weight codes.

    Attributes:
        norm (str): Name of the normalization that was merged, '' for none.
        reason (str): Why none was.
    """

    def __init__(self, codes: Tensor, w_scale: Tensor, bias: Tensor,
                 grid: QuantParams, bits: int) -> None:
        super().__init__()
        self.register_buffer('weight', codes.to(torch.int8))
        self.register_buffer('w_scale', w_scale.float())
        self.register_buffer('bias', bias.float())
        self.grid = grid
        self.bits = bits
        self.set_width()
        self.norm, self.reason = '', ''

    def take_grids(self, grids: List[Optional[QuantParams]]) -> None:
        super().take_grids(grids)
        self.set_width()

    def set_width(self) -> None:
        """Whether float32 is too narrow for sums of products of codes."""
        largest = int(self.weight.long().abs().flatten(1).sum(1).max())
        self.wide = largest * max(
            self.grid.high, -self.grid.low) >= FLOAT32_EXACT

    def extra_repr(self) -> str:
        merged = f'merged {self.norm}' if self.norm else \
            f'rescaled: {self.reason}'
        return (f'{tuple(self.weight.shape)}, bits={self.bits}, '
                f'{self.grid}, {merged}')


class MergedConv2d(MergedLayer):
    """Merged form of a quantized ``nn.Conv2d``."""

    def __init__(self, conv: nn.Conv2d, *args) -> None:
        super().__init__(*args)
        self.stride, self.dilation = conv.stride, conv.dilation
        self.groups = conv.groups
        self.padding, self.pad_first = conv.padding, None
        self.pad_mode = conv.padding_mode
        if isinstance(conv.padding, str) or conv.padding_mode != 'zeros':
            self.padding = (0, 0)
            self.pad_first = list(conv._reversed_padding_repeated_twice)
        if self.pad_mode == 'zeros':
            self.pad_mode = 'constant'

    def forward(self, x: Tensor) -> Tensor:
        if self.pad_first is not None:
            x = F.pad(x, self.pad_first, mode=self.pad_mode)
        return OPS.conv2d(
            self.grid.quantize(x), self.weight, self.grid.scale, self.w_scale,
            self.bias, self.grid.low, self.bits, self.stride, self.padding,
            self.dilation, self.groups, self.wide)


class MergedLinear(MergedLayer):
    """Merged form of a quantized ``nn.Linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return OPS.linear(
            self.grid.quantize(x), self.weight, self.grid.scale, self.w_scale,
            self.bias, self.grid.low, self.bits, self.wide)


class MergedReLU(KeepsGrids, QuantReLU):
    """Merged form of a ReLU with quantized output, one grid a call site.

    Sites whose threshold was never set have no grid: no layer reads them.
    """

    def start_merged(self, grids: List[Optional[QuantParams]]) -> None:
        """Take the grids that replace the quantizers."""
        del self.site_quantizers, self._shared
        self.grids = grids

    def forward(self, input: Tensor) -> Tensor:
        grid = self.grids[self.count_call() % len(self.grids)]
        x = F.relu(input)
        return x if grid is None else grid.round(x)


class RoundedOutput(KeepsGrids, nn.Module):
    """Merged form of an output quantizer.

    Args:
        grid (QuantParams, optional): None where the threshold was never set,
            in modules that nothing called.
    """

    def __init__(self, grid: Optional[QuantParams]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return x if self.grid is None else self.grid.round(x)


class RoundedProducts(KeepsGrids, ProductOperands):
    """Merged form of the quantizers of a module's products.

    Args:
        name (str): The module.
        grids (list[QuantParams, optional]): Two a product; None where the
            example showed none.
        of_weights (set[int]): Products that are left as they are.
        sites (Sites): Where the trained model multiplied.
    """

    def __init__(self, name: str, grids: List[Optional[QuantParams]],
                 of_weights: Set[int], sites: Sites) -> None:
        super().__init__()
        self.name, self.grids = name, grids
        self.of_weights, self.sites = of_weights, sites

    @property
    def number(self) -> int:
        return len(self.grids) // 2

    def leaves(self, product: int, *operands: Tensor) -> bool:
        return product in self.of_weights or not all(
            each.is_floating_point() for each in operands)

    def forward(self, place: int, x: Tensor) -> Tensor:
        grid = self.grids[place]
        if grid is None:
            raise RuntimeError(
                f'{self.name or "the model"} computes more products of '
                'activations than the example showed when it was merged: '
                'merge it with inputs like these')
        return grid.round(x)


class WeightOnly(KeepsGrids, InputFirst, nn.Module):
    """A float layer with codes for a weight.

    Args:
        layer (nn.Module): The float layer, its weight taken out.
        codes (Tensor): Weight codes.
        w_scale (Tensor): Shape ``(num_filters, )``.
        bits (int): Bit width of the weight codes.
    """

    def __init__(self, layer: nn.Module, codes: Tensor, w_scale: Tensor,
                 bits: int) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer('weight', codes.to(torch.int8))
        self.register_buffer('w_scale', w_scale.float().clone())
        self.bits, self.grids = bits, []

    def extra_repr(self) -> str:
        return f'{tuple(self.weight.shape)}, bits={self.bits}'

    def float_weight(self) -> Tensor:
        """The weight that the layer computes with."""
        return OPS.dequantize_weight(self.weight, self.w_scale, self.bits)

    def forward(self, *args, **kwargs):
        return torch.func.functional_call(
            self.layer, dict(weight=self.float_weight()), args, kwargs)


class FixedGrid(KeepsGrids, nn.Module):
    """In the place of the activation quantizer of a layer that stays."""
    fused, initialized = False, True

    def __init__(self, grid: QuantParams) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor, rounding: bool = True) -> Tensor:
        return self.grid.round(x)


class RoundedInput(KeepsGrids, InputFirst, nn.Sequential):
    """A float layer whose first argument is a quantized activation."""

    def __init__(self, grid: QuantParams, layer: nn.Module) -> None:
        super().__init__(layer)
        self.grid = grid

    def forward(self, x: Tensor, *args, **kwargs):
        return self[0](self.grid.round(x), *args, **kwargs)


_HOOKS = ('_forward_pre_hooks', '_forward_pre_hooks_with_kwargs',
          '_forward_hooks', '_forward_hooks_with_kwargs',
          '_forward_hooks_always_called')
_SIZES = ('in_features', 'out_features', 'in_channels', 'out_channels',
          'kernel_size')


def take_place(source: nn.Module, target: nn.Module) -> None:
    """Let ``target`` run the forward hooks of the module that it replaces,
    that of a quantizer of the output included, and say of its sizes what
    that said: models ask their layers."""
    for name in _SIZES:
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))
    for name in _HOOKS:
        getattr(target, name).update(getattr(source, name))
    if hasattr(source, OUTPUT_QUANTIZER):
        target.add_module(OUTPUT_QUANTIZER, getattr(source, OUTPUT_QUANTIZER))


def drop_hooks(module: nn.Module) -> None:
    """Forget the forward hooks of a shallow copy; the original keeps its."""
    for name in _HOOKS:
        setattr(module, name, OrderedDict())
