"""Values that are learned, in units of where they start."""
from typing import Optional

import torch
from torch import Tensor, nn

TINY = torch.finfo(torch.float32).tiny


class _InUnits(torch.autograd.Function):
    """``value`` of ``ratio``, whose gradient is that of the value over
    ``unit``, also below the least ratio."""

    @staticmethod
    def forward(ctx, ratio, unit, value):
        ctx.save_for_backward(unit)
        return value

    @staticmethod
    def backward(ctx, grad):
        unit, = ctx.saved_tensors
        return grad / torch.where(unit > 0, unit, 1.), None, None


class LearnedValue(nn.Module):
    """A step size, clip value or offset that an optimizer trains.

    Zero until it starts. What the optimizer holds is ``ratio``, the value in
    units of where it (or the step size beside it) starts. SGD then moves the
    value by ``lr`` times its gradient, just as if it held the value itself.
    Adam and its like move whatever they hold by about ``lr``: of a ratio that
    is a small part, of the step size of an 8-bit layer it could be all there
    is, and a step size that passes zero takes its layer's outputs with it.

    Args:
        shape (int): Sizes of the value; none for a single one.
        least (float, optional): The least ratio that acts; a smaller one is
            taken for it, and its gradient leads back. Defaults to 1/64. None:
            the value may be negative.
    """
    LEAST = 1 / 64

    def __init__(self, *shape: int, least: Optional[float] = LEAST) -> None:
        super().__init__()
        self.least = least
        self.register_buffer('unit', torch.zeros(shape))
        self.ratio = nn.Parameter(torch.zeros(shape))
        self._started = False

    @property
    def started(self) -> bool:
        # Asked of the device only until there is a value.
        self._started = self._started or bool(self.unit.any())
        return self._started

    def forget(self) -> None:
        """Entries were written from outside."""
        self._started = False

    @torch.no_grad()
    def start_(self, unit, value=None) -> None:
        """Where it starts; it does not where ``unit`` is zero throughout.

        Args:
            unit (Tensor or float): Positive, or zero where nothing was seen.
            value (Tensor or float, optional): Defaults to ``unit``.
        """
        unit = torch.as_tensor(unit, device=self.unit.device)
        # Groups of nothing but zeros would stay what they are for ever, and
        # float32 divides by nothing that is less.
        is_there = unit >= TINY
        if not is_there.any():
            return
        self.unit.copy_(torch.where(is_there, unit, unit[is_there].mean()))
        self.ratio.copy_(torch.ones_like(self.unit) if value is None
                         else value / self.unit)

    @torch.no_grad()
    def stop_(self) -> None:
        """Wait for another start."""
        self.unit.zero_()
        self.ratio.zero_()
        self.forget()

    def value_of(self, ratio: Tensor, unit: Tensor) -> Tensor:
        """The value that two entries stand for."""
        if self.least is None:
            return unit * ratio
        return (unit * ratio.clamp(min=self.least)).clamp(min=TINY)

    def forward(self) -> Tensor:
        """The value in force."""
        return _InUnits.apply(self.ratio, self.unit, self.value_of(
            self.ratio.detach(), self.unit))

    @property
    def detached(self) -> Tensor:
        """The value in force, without a gradient."""
        return self().detach()
