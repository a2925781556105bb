"""Grids of activations in merged models."""
from dataclasses import astuple, dataclass
from math import isnan, nan
from typing import Callable, List, Optional

import torch
from torch import Tensor, nn

from .ops import OPS

TINY = torch.finfo(torch.float32).tiny  # smaller ones lose their precision


@dataclass(frozen=True)
class QuantParams:
    """What an activation is rounded to.

    Codes are counted from that of zero: ``x ~ codes * scale``. A quantizer's
    zero point is ``-low`` once they are stored from 0 on.

    Args:
        scale (float): Step between codes, a float32 value.
        low (int): The least code, at most 0; 0 where the activation is
            unsigned.
        high (int): The greatest code, at least 0.
    """
    scale: float
    low: int
    high: int

    @classmethod
    def of(cls, quantizer: nn.Module, name: str) -> 'QuantParams':
        """The grid of a trained activation quantizer.

        Args:
            quantizer (nn.Module): The quantizer.
            name (str): What it belongs to.

        Raises:
            ValueError: Zero has no code.
        """
        scale, low, high, zero_point = quantizer.code_range()
        if not low <= zero_point <= high:
            raise ValueError(
                f'{name}: the zero point of its {type(quantizer).__name__} '
                f'is {zero_point}, outside its codes {low} to {high}, so that '
                'padding has no code; train on, or quantize this input with '
                'a type without a zero point')
        if scale < TINY:  # a threshold of zero maps everything to zero
            return cls(1., 0, 0)
        return cls(scale, low - zero_point, high - zero_point)

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of ``x``."""
        return OPS.quantize(x, self.scale, self.low, self.high)

    def round(self, x: Tensor) -> Tensor:
        """``x`` rounded to the grid."""
        return OPS.dequantize(self.quantize(x), self.scale, self.low)


class KeepsGrids(nn.Module):
    """A module with a ``grid`` or ``grids``, and perhaps ``bits``.

    They are no tensors, but a part of its state dict: weights are worth
    nothing on other grids.
    """

    def all_grids(self) -> List[Optional[QuantParams]]:
        return self.grids if hasattr(self, 'grids') else [self.grid]

    def take_grids(self, grids: List[Optional[QuantParams]]) -> None:
        if hasattr(self, 'grids'):
            self.grids = grids
        else:
            self.grid, = grids

    def get_extra_state(self) -> Tensor:
        """A row a grid, NaN for none, and the bits behind them."""
        rows = [astuple(grid) if grid else (nan, ) * 3
                for grid in self.all_grids()]
        return torch.tensor(rows + [(getattr(self, 'bits', 0), ) * 3],
                            dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        *rows, (bits, *_) = state.tolist()
        if len(rows) != len(self.all_grids()):
            raise ValueError(
                f'a {type(self).__name__} has {len(self.all_grids())} grids, '
                f'the state dict {len(rows)}: it is of another merged model')
        self.take_grids([
            None if isnan(scale) else QuantParams(scale, int(low), int(high))
            for scale, low, high in rows])
        if bits:
            self.bits = int(bits)


def map_grids(model: nn.Module,
              change: Callable[[QuantParams], QuantParams]) -> nn.Module:
    """Give every activation of a merged model another grid, in place."""
    for module in model.modules():
        if isinstance(module, KeepsGrids):
            module.take_grids([grid and change(grid)
                               for grid in module.all_grids()])
    return model
