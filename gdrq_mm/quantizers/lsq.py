"""LSQ: step sizes that are learned by gradient.

Paper: "Learned Step Size Quantization" (Esser et al., 2020), arXiv
1902.08153.
"""
import math
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor

from .. import functional as F
from ..errors import check
from .base import WeightQuantizer
from .code_range import CodeRange
from .first_batch import FirstBatchActivation
from .learned_value import TINY, LearnedValue
from .schemes import WeightScheme


class LearnedStep(torch.autograd.Function):
    """``v = s * round(clip(x / s, low, high))`` (Eq. 1, 2).

    The gradient of ``x`` is 1 inside the range (Eq. 5), that of ``s``
    ``round(x / s) - x / s`` inside, ``low`` or ``high`` outside (Eq. 3),
    times ``gradient_scale`` (Section 2.2).
    """

    @staticmethod
    def forward(ctx, x, step, low, high, gradient_scale):
        ctx.save_for_backward(x, step)
        ctx.constants = low, high, gradient_scale
        ratio = F.at_least_float32(x) / step
        return (ratio.round_().clamp_(low, high) * step).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, step = ctx.saved_tensors
        low, high, gradient_scale = ctx.constants
        ratio = F.at_least_float32(x) / step
        inside = (ratio >= low) & (ratio <= high)
        grad_step = None
        if ctx.needs_input_grad[1]:
            codes = ratio.round().clamp_(low, high)
            slope = torch.where(inside, codes - ratio, codes)
            grad_step = (grad * slope * gradient_scale).sum_to_size(
                step.shape)
        return torch.where(inside, grad, 0.), grad_step, None, None, None


@dataclass(frozen=True)
class LSQWeightScheme(WeightScheme):
    """How LSQ quantizes weights.

    Args:
        type (str): 'LSQ'.
        bits (int, optional): 2 to 8. Defaults to None: weights stay float.
        group_size (int): Filters that share a step size; -1 for the whole
            layer, as in the paper. Defaults to -1.
    """
    group_size: int = -1

    def __post_init__(self):
        super().__post_init__()
        check(self.bits != 1, 'bits', self.bits, '2 to 8, or None for float')


class LSQWeight(WeightQuantizer):
    """Weights on ``2^bits`` levels, one learned step size per group.

    It starts at ``2 * mean|w| / sqrt(Q_p)`` (Section 2.1), at the first
    training step.

    Args:
        num_filters (int): First dimension of the weight.
        bits (int): 2 to 8.
        group_size (int): Filters that share a step size, -1 for all.
    """
    Scheme = LSQWeightScheme
    non_negative = ('step.unit', )

    def __init__(self, num_filters: int, bits: int, group_size: int) -> None:
        super().__init__(num_filters, bits, group_size)
        self.low, self.high = -2**(bits - 1), 2**(bits - 1) - 1
        self.step = LearnedValue(F.num_groups(num_filters, group_size))

    def extra_repr(self) -> str:
        return f'bits={self.bits}, group_size={self.group_size}'

    def _current_step(self, weight: Tensor) -> Tensor:
        """Step sizes in force for ``weight``, shape ``(num_groups, )``."""
        return self.step() if self.step.started else \
            self.first_step(weight).to(self.step.unit).clamp(min=TINY)

    def first_step(self, weight: Tensor) -> Tensor:
        """Where step sizes start, shape ``(num_groups, )``."""
        return F.clip_threshold(weight, 2 / math.sqrt(self.high),
                                self.group_size)

    def start_step(self, weight: Tensor) -> None:
        if not self.step.started:
            self.step.start_(self.first_step(weight))

    def _of_filters(self, step: Tensor, weight: Tensor) -> Tensor:
        return F.expand_clip(step, weight, self.group_size)

    def forward(self, weight: Tensor, rounding: bool = True) -> Tensor:
        if not rounding:
            return weight
        step = self._current_step(weight)
        values = weight.numel() / len(step)
        return LearnedStep.apply(
            weight, self._of_filters(step, weight), self.low, self.high,
            1 / math.sqrt(values * self.high))

    def codes(self, weight: Tensor) -> Tuple[Tensor, Tensor]:
        step = self._of_filters(self._current_step(weight), weight).detach()
        codes = (weight.detach() / step).round().clamp_(self.low, self.high)
        return codes, step

    def packed_state(self, weight: Tensor) -> Dict[str, Tensor]:
        step = self._current_step(weight).detach()
        return {'step.unit': step, 'step.ratio': torch.ones_like(step)}

    def decode(self, codes: Tensor, entries: Dict[str, Tensor]) -> Tensor:
        step = self.step.value_of(entries['step.ratio'], entries['step.unit'])
        return codes * self._of_filters(step, codes)

    def scalars(self, x: Optional[Tensor] = None) -> Dict[str, Tensor]:
        return dict(lsq_weight_step=self.step.detached.mean())


class LSQActivation(FirstBatchActivation):
    """Activations on a learned step size, unsigned or signed.

    It starts at ``2 * mean|x| / sqrt(Q_p)`` of the first batch (Section 2.1).

    Args:
        bits (int): 2 to 8.
        headroom (float): Factor of that start. Defaults to 1.
    """
    passes_unrounded = True
    NUM_STATISTICS = 1
    non_negative = ('step.unit', )

    def __init__(self, bits: int, headroom: float = 1.) -> None:
        super().__init__(bits, headroom)
        self.step = LearnedValue()

    def has_started(self) -> bool:
        return self.step.started

    def statistics(self, x: Tensor) -> Tensor:
        return x.abs().mean().view(1)

    def start_(self, means: List[float], signed: bool) -> None:
        high = self.codes_between(signed)[1]
        self.step.start_(self.headroom * 2 * means[0] / math.sqrt(high))

    def turn_signed_(self) -> None:
        self.step.unit *= self.codes_between(False)[1] / \
            self.codes_between(True)[1]  # the greatest value stays

    def forward(self, x: Tensor, rounding: bool = True) -> Tensor:
        if not (rounding and self.initialized):
            return x
        low, high = self.codes_between(self.is_signed)
        return LearnedStep.apply(x, self.step(), low, high,
                                 1 / math.sqrt(max(x.numel(), 1) * high))

    def code_range(self) -> CodeRange:
        return CodeRange(float(self.step.detached),
                         *self.codes_between(self.is_signed))

    def value_range(self) -> Tuple[Tensor, Tensor]:
        low, high = self.codes_between(self.is_signed)
        step = self.step.detached
        return low * step, high * step

    def scalars(self, x: Optional[Tensor] = None) -> Dict[str, Tensor]:
        return dict(lsq_act_step=self.step.detached) if self.initialized \
            else {}
