"""LSQ: step sizes that are learned by gradient.

Paper: "Learned Step Size Quantization" (Esser et al., 2020), arXiv
1902.08153.
"""
import math
from dataclasses import dataclass
from typing import Dict, Iterable, Optional, Tuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import functional as F
from ..errors import check
from .base import ActivationQuantizer, CodeRange, WeightQuantizer
from .schemes import WeightScheme


class _Round(torch.autograd.Function):
    """``v = s * round(clip(x / s, low, high))`` (Eq. 1, 2).

    The gradient of ``x`` is 1 inside the range (Eq. 5), that of ``s``
    ``round(x / s) - x / s`` inside, ``low`` or ``high`` outside (Eq. 3),
    times ``gradient_scale`` (Section 2.2).
    """

    @staticmethod
    def forward(ctx, x, step, low, high, gradient_scale):
        ctx.save_for_backward(x, step)
        ctx.constants = low, high, gradient_scale
        return ((x / step).round().clamp_(low, high) * step).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, step = ctx.saved_tensors
        low, high, gradient_scale = ctx.constants
        ratio = x / step
        codes = ratio.round().clamp_(low, high)
        inside = (ratio >= low) & (ratio <= high)
        slope = torch.where(inside, codes - ratio, codes)
        grad_step = (grad * slope * gradient_scale).sum_to_size(step.shape)
        return torch.where(inside, grad, 0.), grad_step, None, None, None


def _positive(step: Tensor) -> Tensor:
    """A step that an optimizer drove to zero or below is the least one."""
    return step.clamp(min=torch.finfo(torch.float32).tiny)


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
    """Weights on ``2^bits`` levels, one learned step size a group.

    It starts at ``2 * mean|w| / sqrt(Q_p)`` (Section 2.1), at the first
    training step.

    Args:
        num_filters (int): First dimension of the weight.
        bits (int): 2 to 8.
        group_size (int): Filters that share a step size, -1 for all.
    """
    Scheme = LSQWeightScheme

    def __init__(self, num_filters: int, bits: int, group_size: int) -> None:
        super().__init__(num_filters, bits, group_size)
        self.low, self.high = -2**(bits - 1), 2**(bits - 1) - 1
        self.step = nn.Parameter(torch.zeros(
            F.num_groups(num_filters, group_size)))
        self._is_set = False

    def extra_repr(self) -> str:
        return f'bits={self.bits}, group_size={self.group_size}'

    def forget(self) -> None:
        self._is_set = False

    def _current_step(self, weight: Tensor) -> Tensor:
        """Step sizes in force for ``weight``, shape ``(num_groups, )``."""
        # Asked of the device only until there are some.
        self._is_set = self._is_set or bool(self.step.detach().any())
        if self._is_set:
            return self.step
        return F.clip_threshold(weight, 2 / math.sqrt(self.high),
                                self.group_size).to(self.step.dtype)

    def start_step(self, weight: Tensor) -> None:
        step = self._current_step(weight)
        if not self._is_set:
            with torch.no_grad():
                self.step.copy_(step)

    def _of_filters(self, step: Tensor, weight: Tensor) -> Tensor:
        return F.expand_clip(_positive(step), weight, self.group_size)

    def forward(self, weight: Tensor, rounding: bool = True) -> Tensor:
        if not rounding:
            return weight
        values = weight.numel() / len(self.step)
        step = self._of_filters(self._current_step(weight), weight)
        return _Round.apply(weight, step, self.low, self.high,
                            1 / math.sqrt(values * self.high))

    def codes(self, weight: Tensor) -> Tuple[Tensor, Tensor]:
        step = self._of_filters(self._current_step(weight), weight).detach()
        codes = (weight.detach() / step).round().clamp_(self.low, self.high)
        return codes, step

    def packed_state(self, weight: Tensor) -> Dict[str, Tensor]:
        return dict(step=self._current_step(weight).detach())

    def decode(self, codes: Tensor, entries: Dict[str, Tensor]) -> Tensor:
        return codes * self._of_filters(entries['step'], codes)

    def scalars(self, x: Optional[Tensor] = None) -> Dict[str, Tensor]:
        return dict(lsq_weight_step=self.step.detach().mean())


class LSQActivation(ActivationQuantizer):
    """Activations on a learned step size, unsigned or signed.

    The first batch (of all ranks together) says whether codes are signed, and
    starts the step size at ``2 * mean|x| / sqrt(Q_p)`` (Section 2.1).

    Args:
        bits (int): 2 to 8.
        headroom (float): Factor of that start. Defaults to 1.
    """

    def __init__(self, bits: int, headroom: float = 1.) -> None:
        super().__init__(bits, headroom)
        self.step = nn.Parameter(torch.zeros(()))
        self.register_buffer('signed', torch.zeros((), dtype=torch.bool))
        # Of the forwards since the last update: sum |x|, values, least one.
        self.register_buffer('seen', torch.zeros(3), persistent=False)
        self._initialized = self._is_signed = False

    def extra_repr(self) -> str:
        return f'bits={self.bits}'

    def forget(self) -> None:
        self._initialized = False

    def _read(self) -> None:
        # Asked of the device only until there is a step size.
        if not self._initialized:
            self._initialized = bool(self.step.detach() != 0)
            self._is_signed = bool(self.signed)

    @property
    def initialized(self) -> bool:
        self._read()
        return self._initialized

    @property
    def is_signed(self) -> bool:
        self._read()
        return self._is_signed

    def _codes_between(self, signed: bool) -> Tuple[int, int]:
        return (-2**(self.bits - 1), 2**(self.bits - 1) - 1) if signed else \
            (0, 2**self.bits - 1)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        if not self.initialized and x.numel():
            x = x.detach().float()
            self.seen += torch.stack([
                x.abs().sum(), x.new_tensor(float(x.numel())),
                x.amin().clamp(max=0)])

    @classmethod
    @torch.no_grad()
    def update_(cls, quantizers: Iterable['LSQActivation']) -> None:
        waiting = [each for each in quantizers if not each.initialized]
        if not waiting:
            return
        seen = torch.stack([each.seen for each in waiting])
        if dist.is_available() and dist.is_initialized() \
                and dist.get_world_size() > 1:
            dist.all_reduce(seen)
        for each, (total, count, least) in zip(waiting, seen.tolist()):
            if count and math.isfinite(total):
                each.signed.fill_(least < 0)
                high = each._codes_between(least < 0)[1]
                each.step.fill_(
                    each.headroom * 2 * total / count / math.sqrt(high))
            each.seen.zero_()

    def forward(self, x: Tensor, rounding: bool = True) -> Tensor:
        if not (rounding and self.initialized):
            return x
        low, high = self._codes_between(self.is_signed)
        return _Round.apply(x, _positive(self.step), low, high,
                            1 / math.sqrt(max(x.numel(), 1) * high))

    def code_range(self) -> CodeRange:
        return CodeRange(float(_positive(self.step)),
                         *self._codes_between(self.is_signed))

    @torch.no_grad()
    def clipped_fraction(self, x: Tensor) -> Tensor:
        low, high = self._codes_between(self.is_signed)
        outside = (x < low * self.step) | (x > high * self.step)
        return outside.sum() / x.count_nonzero().clamp(min=1)

    def scalars(self, x: Optional[Tensor] = None) -> Dict[str, Tensor]:
        return dict(lsq_act_step=self.step.detach()) if self.initialized \
            else {}
