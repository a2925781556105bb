"""Activations on running thresholds of least squared error."""
from typing import Iterable, Optional, Tuple

import torch
from torch import Tensor

from ... import functional as F
from ...kernels import Grid
from ..code_range import CodeRange
from ..least_squares import ZERO_POINTS, few, quick_grid
from ..lsq import LearnedStep
from .activation import ScaleClipActivation
from .running import Known, RunningClip

SMALL = 4  # the greatest value over the size of small negative ones


def _are_small(ends: Tensor) -> Tensor:
    """Whether negative values are.

    Args:
        ends (Tensor): Least and greatest values, shape ``(..., 2)``.
    """
    return ends[..., 0] > -ends[..., 1] / SMALL


class LeastSquaresClipActivation(ScaleClipActivation):
    """Quantize an activation with a running threshold of least squared error.

    Eq. 10 with another target: not ``k * mean|A|``, but the threshold with
    which some values of the batch have the least squared error. No ``k`` has
    to fit the distribution. The first hundred steps are all looked at, then
    every tenth, which moves the threshold as far as ten would.

    An input whose negative values are small (SiLU, GELU) gets the codes ``0 ..
    2^bits - 1`` and a zero point: where it is first seen to be signed, its
    least value must be less than a fourth of its greatest one. ``clip`` is
    then the width of its range, and zero point and width descend together.

    Args:
        bits (int): 2 to 8.
        lr (float): Step of Eq. 10; the first steps average instead. Defaults
            to 0.01.
        headroom (float): Not used: the threshold fits any tails.
        asymmetric (bool, optional): Whether inputs with negative values get a
            zero point. Defaults to None: where these are small.
    """
    non_negative = ('clip', 'zero', 'num_updates')
    # A search takes a tenth of a small step. Negative values are counted in
    # steps that are looked at.
    FIRST_LOOKS = 100
    LOOK_INTERVAL = RunningClip.SIGN_INTERVAL // 2
    LEAST_ZERO = 2.**-10  # of a running code of zero; 0 says there is none

    def __init__(self, bits: int, lr: float = .01, headroom: float = 1.,
                 asymmetric: Optional[bool] = None) -> None:
        super().__init__(bits, None, lr, threshold='mse')
        self.wanted = asymmetric
        self.levels = 2**bits - 1
        # Three more: the code of zero, the least and the greatest value, each
        # times the number of values.
        self.register_buffer('seen', torch.zeros(7), persistent=False)
        if asymmetric is None:
            self.added_later = ('zero', )
        if asymmetric is not False:
            # The running code of zero; in force is the nearest integer. It
            # is above 0, if little, where there is a zero point.
            self.register_buffer('zero', torch.zeros(()))
            # Averages may come out a little above the last code.
            self.greatest = {'zero': self.levels + .25}
        self.known.asymmetric = bool(asymmetric)

    def extra_repr(self) -> str:
        text = f"bits={self.bits}, lr={self.lr}, threshold='mse'"
        return text if self.wanted is None else \
            f'{text}, asymmetric={self.wanted}'

    def k_of(self, signed: bool) -> float:
        return 1.

    def _read(self) -> Known:
        if not self.known.settled and self.wanted is None:
            self.known.asymmetric = bool(self.zero > 0)
        return super()._read()

    @property
    def has_zero_point(self) -> bool:
        return self._read().signed and self.known.asymmetric

    def observe_later(self, x: Tensor) -> Optional[Tensor]:
        # Negative values of an unsigned input, which a ReLU may be about to
        # take away, change nothing.
        self.observe(x)
        return None

    def observe(self, x: Tensor) -> None:
        known = self._read()
        if x.numel():
            known.called, known.measured = True, self._looks
            if known.measured:
                self._look(x)

    @torch.no_grad()
    def _look(self, x: Tensor) -> None:
        count, values = x.numel(), few(x, self.bits)
        signed, asymmetric = self.known.signed, self.known.asymmetric
        if self.known.counts_negatives:
            negative = (x.detach() < 0).sum()
            self.seen[3] += negative
            ends = torch.stack(values.aminmax())
            self.seen[5:] += count * ends
            if not signed:
                signed = bool(negative > self.NEGATIVE_SHARE * count)
                # What all batches of the step say is known after it.
                asymmetric |= signed and self.wanted is None \
                    and bool(_are_small(ends))
        if signed and asymmetric:
            zeros = self._zeros_to_try(values)
            step, row = quick_grid(values, -zeros, self.levels - zeros)
            top, zero = self.levels * step, zeros[row].squeeze()
        else:
            # A tensor of Python numbers would have a GPU waited for.
            levels = values.new_full((1, ), F.num_levels(self.bits, signed))
            step, _ = quick_grid(values, -levels * signed, levels)
            top, zero = (levels * step).squeeze(), None
        # Zeros have no best threshold.
        used = count * ((top > 0) | (self.clip == 0)).to(top)
        self.seen[:2] += torch.stack([used * top, used])
        if zero is not None:
            self.seen[4] += used * zero
        self.seen[2] += count * top.isfinite()

    @property
    def _looks(self) -> bool:
        """Whether this step is one that is looked at."""
        known = self.known
        return known.counts_negatives or known.updates < self.FIRST_LOOKS \
            or known.updates % self.LOOK_INTERVAL == 0

    def end_first_looks(self) -> None:
        """Count the first steps as done, where later ones are measured; one
        that has seen no data stays as it is."""
        if not self.initialized:
            return
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
        if self.known.counts_negatives:
            return values.new_tensor(sorted({
                zero for code in ZERO_POINTS if code <= self.levels
                for zero in (code, self.levels - code)}))
        around = torch.arange(-1, 2, device=values.device)
        return (self.zero.round() + around).clamp_(0, self.levels)

    @classmethod
    def update_zero_points_(cls, quantizers: Iterable[ScaleClipActivation],
                            seen: Tensor, steps: Tensor,
                            turned: Tensor) -> None:
        # All that may have one, whatever this rank knows of them: others may
        # have seen their inputs turn signed.
        kept = [(row, each) for row, each in enumerate(quantizers)
                if each.wanted is not False]
        if not kept:
            return
        rows, quantizers = zip(*kept)
        if len(rows) < len(seen):
            seen, steps, turned = (torch.stack([each[row] for row in rows])
                                   for each in (seen, steps, turned))
        zero = torch.stack([each.zero for each in quantizers])
        target = seen[:, 4] / seen[:, 1].clamp(min=1)
        # Where the input turns signed, it starts.
        moved = zero.lerp(target, torch.where(turned, 1., steps)).clamp(
            min=cls.LEAST_ZERO)
        small = _are_small(seen[:, 5:])
        if any(each.wanted for each in quantizers):
            small = torch.stack([
                torch.ones_like(each) if quantizer.wanted else each
                for quantizer, each in zip(quantizers, small)])
        moves = (steps > 0) & ((zero > 0) | turned & small)
        zeros = torch.where(moves, moved, zero).unbind()
        torch._foreach_copy_([each.zero for each in quantizers], list(zeros))

    def grid(self, seen: Optional[Tensor] = None) -> Optional[Grid]:
        if not (self.initialized and self.has_zero_point):
            return super().grid(seen)
        return Grid(self.clip, self.bits, False, zero=self.zero.round())

    def _range(self) -> Tuple[Tensor, Tensor, Tensor]:
        return F.shifted_range(self.clip, self.zero.round(), self.bits)

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
