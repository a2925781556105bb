"""Weights on clip values that are learned by gradient."""
import math
from typing import Dict, Optional

import torch
from torch import Tensor

from ... import functional as F
from ... import kernels
from ..learned_value import TINY, LearnedValue
from .codes import ClippedWeight
from .defaults import default_weight_k
from .weight import ScaleClipWeightScheme


class _LearnedClip(torch.autograd.Function):
    """``Q(x; a)`` (Eq. 1, 2) with a gradient of ``a``.

    With ``s = a / n`` it is LSQ's of the step size (its Eq. 3), divided by
    ``n``: ``round(x / s) - x / s`` inside the range, the top code from the
    bounds on. That of ``x`` is 1 up to the bounds, these included.
    """

    @staticmethod
    def forward(ctx, x, clip, bits, even, gradient_scale):
        ctx.save_for_backward(x, clip)
        ctx.constants = bits, even, gradient_scale
        codes, scale = F.quantize_codes(x, clip, bits, even=even)
        return codes.mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, clip = ctx.saved_tensors
        bits, even, gradient_scale = ctx.constants
        grad_clip = None
        if ctx.needs_input_grad[1]:
            codes, scale = F.quantize_codes(x, clip, bits, even=even)
            slope = torch.where(x.abs() < clip,
                                codes - x / scale.clamp(min=TINY), codes)
            slope.mul_(scale / clip)
            grad_clip = (grad * slope).sum_to_size(
                clip.shape) * gradient_scale
        return (torch.where(x.abs() <= clip, grad, 0.), grad_clip, None, None,
                None)


class LearnedClipWeight(ClippedWeight):
    """Quantize a weight, one learned clip value per group of filters.

    It starts where rounding begins, at ``T = k * mean|G|`` of the weights
    that were reshaped until then. From there an optimizer moves it just as it
    would LSQ's step size, which is ``1 / n`` of it (``n`` steps from zero to
    the clip value): its gradient times ``n^2 / sqrt(N Q_p)`` in place of
    ``1 / sqrt(N Q_p)`` (LSQ, Section 2.2; ``N`` weights a group), as a value
    ``n`` times as large has a gradient of ``1 / n``.

    With ``projection`` the stored weights are clipped in place to ``T`` after
    each optimizer step, until rounding begins. Clipped to the learned value
    as well, they would lose whatever a small value cuts off, and not get it
    back from a greater one: with SGD, which moves it to and fro, models fall
    apart (docs/results.md).

    Args:
        num_filters (int): First dimension of the weight.
        bits (int): 2 to 8.
        group_size (int): Filters per group, -1 for the whole layer.
        k (float, optional): Threshold factor; None: by bits, see
            :func:`default_weight_k`.
        clip (str): 'learned', what the scheme says.
        projection (bool): Clip the stored weights until rounding begins.
            Defaults to True.
        levels (str): 'odd' or 'even' number of levels. Defaults to 'even'.
    """

    Scheme = ScaleClipWeightScheme
    non_negative = ('clip.unit', )

    def __init__(self, num_filters: int, bits: int, group_size: int,
                 k: Optional[float], clip: str = 'learned',
                 projection: bool = True, levels: str = 'even') -> None:
        super().__init__(num_filters, bits, group_size, levels)
        self.k = default_weight_k(bits) if k is None else k
        self.projection = projection
        self.clip = LearnedValue(F.num_groups(num_filters, group_size))

    def extra_repr(self) -> str:
        text = (f'bits={self.bits}, group_size={self.group_size}, '
                f"k={self.k}, clip='learned'")
        text += ", levels='even'" if self.even else ''
        return text + ('' if self.projection else ', projection=False')

    @torch.no_grad()
    def restart(self, trained: bool = True) -> None:
        self.clip.unit.zero_()
        self.clip.ratio.zero_()
        self.clip.forget()

    def _threshold(self, weight: Tensor) -> Tensor:
        return F.clip_threshold(weight, self.k, self.group_size)

    def _clip(self, weight: Tensor) -> Tensor:
        return self.clip() if self.clip.started else \
            self._threshold(weight).to(self.clip.unit.dtype)

    def current_clip(self, weight: Tensor) -> Tensor:
        return self._clip(weight).detach()

    def stored_clip(self, entries: Dict[str, Tensor]) -> Tensor:
        return self.clip.value_of(entries['clip.ratio'], entries['clip.unit'])

    def start_step(self, weight: Tensor) -> None:
        if not self.clip.started:
            self.clip.start_(self._threshold(weight))

    @torch.no_grad()
    def after_step(self, weight: Tensor) -> None:
        if self.projection and not self.clip.started:
            kernels.project_(weight, torch.empty_like(self.clip.unit), self.k,
                             self.group_size)

    def packed_state(self, weight: Tensor) -> Dict[str, Tensor]:
        clip = self.current_clip(weight)
        return {'clip.unit': clip, 'clip.ratio': torch.ones_like(clip)}

    def forward(self, weight: Tensor, rounding: bool = True) -> Tensor:
        if not rounding:  # the float model is reshaped
            return weight
        clip = self._clip(weight)
        # Steps from zero to the clip value, and to the top level.
        steps = 2**(self.bits - 1) if self.even else self.highest_code
        top = self.highest_code / self.code_step
        values = weight.numel() / max(len(clip), 1)
        return _LearnedClip.apply(
            weight, self.top(weight, clip), self.bits, self.even,
            steps**2 / math.sqrt(max(values, 1) * top))
