"""LSQ+: LSQ with a learned offset of activations and other starts.

Paper: "LSQ+: Improving low-bit quantization through learnable offsets and
better initialization" (Bhalgat et al., 2020), arXiv 2004.09576: unsigned
codes with an offset for activations, symmetric weights (its configuration 4).
"""
import math
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from .. import functional as F
from .code_range import CodeRange
from .first_batch import FirstBatchActivation
from .learned_value import LearnedValue
from .least_squares import least_squares_grid, sample
from .lsq import LSQWeight


class LSQPlusWeight(LSQWeight):
    """Weights as those of LSQ, from another start.

    A step size starts at ``max(|mean - 3 std|, |mean + 3 std|) / 2^(b - 1)``
    (Section 3.3).

    Args:
        num_filters (int): First dimension of the weight.
        bits (int): 2 to 8.
        group_size (int): Filters that share a step size, -1 for all.
    """

    def first_step(self, weight: Tensor) -> Tensor:
        size = len(weight) if self.group_size == -1 else self.group_size
        groups = F.to_float64(weight.detach()).flatten(1).split(size)
        ends = [each.mean().abs() + 3 * each.std(correction=0)
                for each in groups]
        steps = torch.stack(ends) / 2**(self.bits - 1)
        return steps.float().to(weight.device)


class _RoundWithOffset(torch.autograd.Function):
    """``s * (clip(round(x / s) + z, 0, high) - z)``, ``z = round(-b / s)``.

    Gradients as in the paper (Eq. 4, 5), where the offset ``b`` is added
    unrounded: that of ``s`` as in LSQ; that of ``b`` 0 inside the range and 1
    outside.
    """

    @staticmethod
    def forward(ctx, x, step, offset, high, gradient_scale):
        ctx.save_for_backward(x, step, offset)
        ctx.constants = high, gradient_scale
        zero = zero_point(step, offset, high)
        codes = (F.at_least_float32(x) / step).round() + zero
        return ((codes.clamp_(0, high) - zero) * step).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, step, offset = ctx.saved_tensors
        high, gradient_scale = ctx.constants
        zero = zero_point(step, offset, high)
        ratio = F.at_least_float32(x) / step
        codes = (ratio.round() + zero).clamp_(0, high)
        inside = (ratio >= -zero) & (ratio <= high - zero)
        slope = torch.where(inside, codes - zero - ratio, codes)
        return (torch.where(inside, grad, 0.),
                (grad * slope).sum() * gradient_scale,
                torch.where(inside, 0., grad).sum(
                    dtype=slope.dtype) * gradient_scale, None, None)


def zero_point(step: Tensor, offset: Tensor, high: int) -> Tensor:
    """The code of zero, an integer."""
    return (-offset / step).round().clamp(0, high)


class LSQPlusActivation(FirstBatchActivation):
    """Activations on unsigned codes with a learned step size and offset.

    Both start at the least squared error of the first batch (Section 3.3).
    Ours: the offset acts as a whole number of steps, so that zero has a code.
    Padding and integer kernels need one, and without it the paper's offset
    could go into the bias of layers without padding only.

    Args:
        bits (int): 2 to 8.
        headroom (float): Not used: that start fits any tails.
    """
    passes_unrounded = True
    NUM_STATISTICS = 2
    non_negative = ('step.unit', 'offset.unit')

    def __init__(self, bits: int, headroom: float = 1.) -> None:
        super().__init__(bits, headroom)
        self.step = LearnedValue()
        self.offset = LearnedValue(least=None)  # in units of the first step
        self.high = 2**bits - 1

    def has_started(self) -> bool:
        return self.step.started

    @property
    def has_zero_point(self) -> bool:
        return self.initialized and self.code_range().zero_point > 0

    @property
    def is_signed(self) -> bool:
        return self.has_zero_point

    def statistics(self, x: Tensor) -> Tensor:
        step, zero = least_squares_grid(sample(x), self.high)
        return torch.stack([step, -zero * step])

    def start_(self, means: List[float], signed: bool) -> None:
        self.step.start_(means[0])
        self.offset.start_(means[0], means[1])

    def count_negatives(self) -> None:
        pass  # the offset learns of negative values by itself

    def forward(self, x: Tensor, rounding: bool = True) -> Tensor:
        if not (rounding and self.initialized):
            return x
        return _RoundWithOffset.apply(
            x, self.step(), self.offset(), self.high,
            1 / math.sqrt(max(x.numel(), 1) * self.high))

    def code_range(self) -> CodeRange:
        step = self.step.detached
        return CodeRange(float(step), 0, self.high, int(
            zero_point(step, self.offset.detached, self.high)))

    def value_range(self) -> Tuple[Tensor, Tensor]:
        step = self.step.detached
        zero = zero_point(step, self.offset.detached, self.high)
        return -zero * step, (self.high - zero) * step

    def scalars(self, x: Optional[Tensor] = None) -> Dict[str, Any]:
        return dict(lsq_plus_act_step=self.step.detached,
                    lsq_plus_act_offset=self.offset.detached) \
            if self.initialized else {}
