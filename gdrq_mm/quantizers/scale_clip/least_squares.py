"""Activations on running thresholds of least squared error."""
from typing import Iterable, Optional, Tuple

import torch
from torch import Tensor

from ... import functional as F
from ..code_range import CodeRange
from ..least_squares import ZERO_POINTS, few, quick_grid
from ..lsq import LearnedStep
from .activation import ScaleClipActivation
from .running import RunningClip


class LeastSquaresClipActivation(ScaleClipActivation):
    """Quantize an activation with a running threshold of least squared error.

    Eq. 10 with another target: not ``k * mean|A|``, but the threshold with
    which some values of the batch have the least squared error. No ``k`` has
    to fit the distribution. The first hundred steps are all looked at, then
    every tenth, which moves the threshold as far as ten would.

    With ``asymmetric`` an input that has negative values gets the codes ``0 ..
    2^bits - 1`` and a zero point. ``clip`` is then the width of its range, and
    zero point and width descend together.

    Args:
        bits (int): 2 to 8.
        lr (float): Step of Eq. 10; the first steps average instead. Defaults
            to 0.01.
        headroom (float): Not used: the threshold fits any tails.
        asymmetric (bool): A zero point in place of signed codes. Defaults to
            False.
    """
    non_negative = ('clip', 'zero')
    # A search takes a tenth of a small step. Negative values are counted in
    # steps that are looked at.
    FIRST_LOOKS = 100
    LOOK_INTERVAL = RunningClip.SIGN_INTERVAL // 2
    SMALL = 4  # the greatest value over the size of small negative ones

    def __init__(self, bits: int, lr: float = .01, headroom: float = 1.,
                 asymmetric: bool = False) -> None:
        super().__init__(bits, None, lr, threshold='mse')
        self.asymmetric = asymmetric
        self.levels = 2**bits - 1
        # One more: the code of zero times the number of values.
        self.register_buffer('seen', torch.zeros(5), persistent=False)
        # The least and the greatest value, where negative ones were counted.
        self.register_buffer('ends', torch.zeros(2), persistent=False)
        if asymmetric:
            # The running code of zero; in force is the nearest integer.
            self.register_buffer('zero', torch.zeros(()))
            # Averages may come out a little above the last code.
            self.greatest = {'zero': self.levels + .25}

    def extra_repr(self) -> str:
        text = f"bits={self.bits}, lr={self.lr}, threshold='mse'"
        return text + ', asymmetric=True' if self.asymmetric else text

    def k_of(self, signed: bool) -> float:
        return 1.

    @property
    def has_zero_point(self) -> bool:
        """Whether the range in force has a zero point."""
        return self.asymmetric and self.is_signed

    @property
    def fused(self) -> bool:
        """The kernels know no zero point."""
        return not self.has_zero_point

    def observe_later(self, x: Tensor) -> Optional[Tensor]:
        # Of a settled unsigned input the negative values change nothing (a
        # ReLU may be about to take them away).
        self.observe(x)
        return None

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        self._called = True
        count, signed = x.numel(), self.is_signed
        if not self._looks:
            self.seen[2] += count
            return
        if self._counts_negatives:
            negative = (x.detach() < 0).sum()
            self.seen[3] += negative
            signed = signed or bool(negative > self.NEGATIVE_SHARE * count)
        values = few(x, self.bits)
        if self._counts_negatives:
            self.ends = torch.stack(values.aminmax())
        if signed and self.asymmetric:
            zeros = self._zeros_to_try(values)
            step, row = quick_grid(values, -zeros, self.levels - zeros)
            self.seen[4] += count * zeros[row].squeeze()
            top = self.levels * step
        else:
            # A tensor of Python numbers would have a GPU waited for.
            levels = values.new_full(
                (1, ), F.num_levels(self.bits, signed))
            step, _ = quick_grid(values, -levels * signed, levels)
            top = (levels * step).squeeze()
        # Zeros have no best threshold.
        used = count * ((top > 0) | (self.clip == 0)).to(top)
        self.seen[:2] += torch.stack([used * top, used])
        self.seen[2] += count * top.isfinite()

    @property
    def hint(self) -> str:
        """A zero point, where negative values are small (SiLU, GELU)."""
        if self.asymmetric or not self.is_signed:
            return ''
        low, high = self.ends.tolist()
        return '' if low <= -high / self.SMALL else (
            'negative values are small, as behind SiLU or GELU, and signed '
            'codes are wasted on them: activation=dict(asymmetric=True) gives '
            'a zero point instead, with much less error at few bits')

    @property
    def _looks(self) -> bool:
        """Whether this step is one that is looked at."""
        return (self._counts_negatives or self._updates < self.FIRST_LOOKS
                or self._updates % self.LOOK_INTERVAL == 0)

    def end_first_looks(self) -> None:
        """Count the first steps as done, where later ones are measured."""
        self.num_updates.fill_(self.FIRST_LOOKS)
        self.forget()

    @classmethod
    def step_size(cls, lr: Tensor, updates: Tensor) -> Tensor:
        return torch.where(updates < cls.FIRST_LOOKS,
                           super().step_size(lr, updates),
                           1 - (1 - lr)**cls.LOOK_INTERVAL)

    @classmethod
    def most_growth(cls, updates: Tensor) -> Tensor:
        # By a tenth, as ten small steps would with one outlier among them.
        return torch.where(updates < cls.FIRST_LOOKS,
                           super().most_growth(updates),
                           1 + (cls.OUTLIER - 1) / cls.LOOK_INTERVAL)

    def _zeros_to_try(self, values: Tensor) -> Tensor:
        if self._counts_negatives:
            return values.new_tensor(sorted({
                zero for code in ZERO_POINTS if code <= self.levels
                for zero in (code, self.levels - code)}))
        around = torch.arange(-1, 2, device=values.device)
        return (self.zero.round() + around).clamp_(0, self.levels)

    @classmethod
    def update_zero_points_(cls, quantizers: Iterable[ScaleClipActivation],
                            seen: Tensor, steps: Tensor) -> None:
        for quantizer, row, step in zip(quantizers, seen, steps):
            if quantizer.asymmetric:
                target = row[4] / row[1].clamp(min=1)
                # Where the input turns signed, it starts.
                moved = quantizer.zero.lerp(target, torch.where(
                    quantizer.signed, step, 1.))
                quantizer.zero.copy_(
                    torch.where(step > 0, moved, quantizer.zero))

    def _range(self) -> Tuple[Tensor, Tensor, Tensor]:
        """Step, least and greatest code from zero on."""
        zero = self.zero.round()
        step = F.divide(self.clip, self.levels).clamp(
            min=torch.finfo(torch.float32).tiny)
        return step, -zero, self.levels - zero

    def code_range(self) -> CodeRange:
        if not self.has_zero_point:
            return super().code_range()
        step, low, _ = self._range()
        return CodeRange(float(step), 0, self.levels, -int(low))

    def value_range(self) -> Tuple[Tensor, Tensor]:
        if not self.has_zero_point:
            return super().value_range()
        step, low, high = self._range()
        return low * step, high * step

    def forward(self, x: Tensor, rounding: bool = True) -> Tensor:
        if not (self.initialized and self.has_zero_point):
            return super().forward(x, rounding)
        step, low, high = self._range()
        if not rounding:
            return torch.clamp(x, (low * step).to(x.dtype),
                               (high * step).to(x.dtype))
        return LearnedStep.apply(x, step, low, high, 1.)
