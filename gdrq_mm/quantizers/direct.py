"""Direct Quantization: learned levels, activations that weigh channels alike.

Paper: "Direct Quantization for Training Highly Accurate Low Bit-width Deep
Neural Networks" (Hoang et al., 2020), arXiv 2012.13762. Only its abstract is
public, so this is what it says, built by us. The paper's: quantized weights
are updated directly, with learnable quantization levels; quantizers of
activations take the errors of individual channels into account, as a few
channels of high variance would else decide. Ours: all formulas below.
"""
from dataclasses import dataclass
from typing import Dict, Iterable, List, Optional, Tuple

import torch
from torch import Tensor, nn

from .. import functional as F
from .base import ActivationQuantizer, WeightQuantizer
from .code_range import CodeRange
from .first_batch import FirstBatchActivation, sum_over_ranks_
from .least_squares import (
    balance,
    fitted_step,
    least_squares_step,
    sample,
)
from .lsq import LearnedStep
from .schemes import WeightScheme


@dataclass(frozen=True)
class DirectQuantizationWeightScheme(WeightScheme):
    """How Direct Quantization quantizes weights.

    Args:
        type (str): 'DirectQuantization'.
        bits (int, optional): 1 to 8. Defaults to None: weights stay float.
        group_size (int): Filters that share levels; -1 for the whole layer.
            Defaults to -1.
    """
    group_size: int = -1


class _ScaleGradient(torch.autograd.Function):
    """Identity; the gradient is multiplied."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def lloyd(values: Tensor, levels: int, iterations: int) -> Tensor:
    """Levels of least squared error, in float64 and ascending.

    Args:
        values (Tensor): Shape ``(n, )``.
        levels (int): How many.
        iterations (int): Each level moves to the mean of its values so often.
    """
    values = F.to_float64(values)
    ranks = (torch.arange(levels, device=values.device) + .5) / levels
    found = values.sort()[0][(ranks * len(values)).long()]
    for _ in range(iterations):
        index = torch.bucketize(values, (found[1:] + found[:-1]) / 2)
        counts = torch.bincount(index, minlength=levels)
        sums = torch.zeros_like(found).index_add_(0, index, values)
        found = torch.where(counts > 0, sums / counts.clamp(min=1), found)
    return found.sort()[0]


class DirectQuantizationWeight(WeightQuantizer):
    """Weights on ``2^bits`` learned levels, which need not be evenly spaced.

    A weight is quantized to the nearest level of its group. A gradient step
    moves the levels, and with them the quantized weights themselves; stored
    weights, which say what level each one is on, move by the same gradient,
    straight-through. The gradient of a level is the sum over the weights that
    lie on it, times ``sqrt(levels / weights)``: as large as that of a weight.
    Levels start at those of least squared error (Lloyd's algorithm), at the
    first training step.

    Args:
        num_filters (int): First dimension of the weight.
        bits (int): 1 to 8.
        group_size (int): Filters that share levels, -1 for all.
    """
    Scheme = DirectQuantizationWeightScheme
    ITERATIONS = 20  # of Lloyd's algorithm

    def __init__(self, num_filters: int, bits: int, group_size: int) -> None:
        super().__init__(num_filters, bits, group_size)
        # Flat: DETR's init_weights draws all matrices anew, whoever has them.
        self.levels = nn.Parameter(torch.zeros(
            F.num_groups(num_filters, group_size) * 2**bits))
        self._is_set = False

    def extra_repr(self) -> str:
        return f'bits={self.bits}, group_size={self.group_size}'

    def forget(self) -> None:
        self._is_set = False

    def _current_levels(self, weight: Tensor) -> Tensor:
        """Ascending levels in force, shape ``(num_groups, 2^bits)``."""
        # Asked of the device only until there are some.
        self._is_set = self._is_set or bool(self.levels.detach().any())
        if self._is_set:
            return self._ascending(self.levels)
        size = len(weight) if self.group_size == -1 else self.group_size
        return torch.stack([
            lloyd(group.flatten(), 2**self.bits, self.ITERATIONS)
            for group in weight.detach().split(size)]).to(self.levels)

    def _ascending(self, levels: Tensor) -> Tensor:
        return levels.view(-1, 2**self.bits).sort(dim=1)[0]

    @torch.no_grad()
    def start_step(self, weight: Tensor) -> None:
        levels = self._current_levels(weight)
        if not self._is_set:
            self.levels.copy_(levels.flatten())

    def _of_filters(self, levels: Tensor, rows: Tensor) -> Tensor:
        return levels.expand(len(rows), -1) if self.group_size == -1 else \
            levels.repeat_interleave(min(self.group_size, len(rows)),
                                     dim=0)[:len(rows)]

    def _indices(self, weight: Tensor, levels: Tensor) -> Tensor:
        """Which of the levels of its filter every weight is nearest to."""
        middles = (levels[:, 1:] + levels[:, :-1]) / 2
        return torch.searchsorted(
            middles.detach().contiguous(),
            weight.detach().flatten(1).to(middles.dtype).contiguous())

    def forward(self, weight: Tensor, rounding: bool = True) -> Tensor:
        if not rounding:
            return weight
        levels = self._of_filters(_ScaleGradient.apply(
            self._current_levels(weight),
            (self.levels.numel() / max(weight.numel(), 1))**.5), weight)
        on_levels = levels.gather(1, self._indices(weight, levels)).view_as(
            weight).to(weight.dtype)
        return on_levels + (weight - weight.detach())  # straight-through

    @property
    def lowest_code(self) -> int:
        return 0

    def packed_codes(self, weight: Tensor) -> Tensor:
        levels = self._of_filters(self._current_levels(weight), weight)
        return self._indices(weight, levels).view_as(weight).float()

    def packed_state(self, weight: Tensor) -> Dict[str, Tensor]:
        return dict(levels=self._current_levels(weight).detach().flatten())

    def decode(self, codes: Tensor, entries: Dict[str, Tensor]) -> Tensor:
        levels = self._of_filters(self._ascending(entries['levels']), codes)
        return levels.gather(1, codes.flatten(1).long()).view_as(codes)

    def scalars(self, x: Optional[Tensor] = None) -> Dict[str, Tensor]:
        return dict(direct_weight_top=self.levels.detach().abs().amax())


class DirectQuantizationActivation(FirstBatchActivation):
    """Activations on a step that serves all channels alike.

    It is that of the least sum over channels of ``sum (x - q(x))^2 / sum
    x^2``: of the first batch to start with, then followed, each training step
    going a hundredth of the way to the best step for the codes at hand. The
    task loss has no part in it. Codes are unsigned, or signed, as the first
    batch says.

    Args:
        bits (int): 2 to 8.
        headroom (float): Not used: the step fits any tails.
    """
    NUM_STATISTICS = 2
    non_negative = ('step', )
    LR = .01

    def __init__(self, bits: int, headroom: float = 1.) -> None:
        super().__init__(bits, headroom)
        self.register_buffer('step', torch.zeros(()))
        # Of the forwards since the last update: values, their best steps.
        self.register_buffer('fitted', torch.zeros(2), persistent=False)

    def has_started(self) -> bool:
        return bool(self.step != 0)

    def statistics(self, x: Tensor) -> Tensor:
        values = sample(x, channels=True)
        return torch.stack([
            least_squares_step(values, *self.codes_between(signed))
            for signed in (False, True)])

    def start_(self, means: List[float], signed: bool) -> None:
        self.step.fill_(means[signed])

    def turn_signed_(self) -> None:
        self.step *= self.codes_between(False)[1] / \
            self.codes_between(True)[1]  # the greatest value stays

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        super().observe(x)
        if not self.initialized or not x.numel():
            return
        values, weights = balance(sample(x, channels=True))
        codes = (values / self.step.to(values.device)).round().clamp(
            *self.codes_between(self.is_signed))
        step = fitted_step(values, weights, codes)
        # NaN where a value is infinite: AMP skips that step, and this sum
        # stays until the next one.
        found = step > 0
        self.fitted += torch.stack([
            found.double(), torch.where(found, step, 0.)]).to(
                self.fitted) * x.numel()

    @classmethod
    @torch.no_grad()
    def update_(cls, quantizers: Iterable[ActivationQuantizer]) -> None:
        quantizers = list(quantizers)
        running = [each for each in quantizers if each.initialized]
        super().update_(quantizers)
        if not running:
            return
        fitted = torch.stack([each.fitted for each in running])
        sum_over_ranks_(fitted)
        steps = torch.stack([each.step for each in running])
        count, total = fitted.T
        target = torch.where(count > 0, total / count.clamp(min=1), steps)
        steps = torch.lerp(steps, target, cls.LR)
        torch._foreach_copy_([each.step for each in running],
                             list(steps.unbind()))
        torch._foreach_zero_([each.fitted for each in running])

    def forward(self, x: Tensor, rounding: bool = True) -> Tensor:
        if not (rounding and self.initialized):
            return x
        return LearnedStep.apply(
            x, self.step, *self.codes_between(self.is_signed), 1.)

    def code_range(self) -> CodeRange:
        return CodeRange(float(self.step),
                         *self.codes_between(self.is_signed))

    def value_range(self) -> Tuple[Tensor, Tensor]:
        low, high = self.codes_between(self.is_signed)
        return low * self.step, high * self.step

    def scalars(self, x: Optional[Tensor] = None) -> Dict[str, Tensor]:
        return dict(direct_act_step=self.step) if self.initialized else {}
