"""PACT: clip values of activations that are learned by gradient.

Paper: "PACT: Parameterized Clipping Activation for Quantized Neural Networks"
(Choi et al., 2018), arXiv 1805.06085. Its weights are those of DoReFa.
"""
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor

from .. import functional as F
from .code_range import CodeRange
from .first_batch import FirstBatchActivation
from .learned_value import LearnedValue
from .least_squares import least_squares_step, sample


class _Clip(torch.autograd.Function):
    """``clip(x, 0, a)``, rounded to the grid; signed ``clip(x, -a, a)``.

    The gradient of ``x`` is 1 inside the range, that of ``a`` 1 where ``x``
    is clipped to it (Eq. 3), -1 where to ``-a``.
    """

    @staticmethod
    def forward(ctx, x, clip, bits, signed, rounding):
        ctx.save_for_backward(x, clip)
        ctx.signed = signed
        if rounding:
            codes, scale = F.quantize_codes(x, clip, bits, signed)
            return (codes * scale).to(x.dtype)
        low = -clip if signed else torch.zeros_like(clip)
        return torch.clamp(F.at_least_float32(x), low, clip).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, clip = ctx.saved_tensors
        above = x >= clip
        below = x <= (-clip if ctx.signed else 0.)
        grad_clip = torch.where(above, grad, 0.).sum(dtype=clip.dtype)
        if ctx.signed:
            grad_clip -= torch.where(below, grad, 0.).sum(dtype=clip.dtype)
        return (torch.where(above | below, 0., grad), grad_clip, None, None,
                None)


class PACTActivation(FirstBatchActivation):
    """Activations on a learned clip value ``a``, with weight decay.

    The paper decays ``a`` as weights are decayed (Section 3.2), and so does
    whatever optimizer holds it here. Ours: ``a`` starts at the least squared
    error of the first batch, not at a large number; an input with negative
    values has signed codes, clipped to ``-a`` as well.

    Args:
        bits (int): 2 to 8.
        headroom (float): Not used: that start fits any tails.
    """
    NUM_STATISTICS = 2
    non_negative = ('clip.unit', )
    decays = True

    def __init__(self, bits: int, headroom: float = 1.) -> None:
        super().__init__(bits, headroom)
        self.clip = LearnedValue()

    def has_started(self) -> bool:
        return self.clip.started

    def _levels(self, signed: bool) -> int:
        return F.num_levels(self.bits, signed)

    def statistics(self, x: Tensor) -> Tensor:
        values = sample(x)
        return torch.stack([
            levels * least_squares_step(values, low, levels)
            for levels, low in ((self._levels(False), 0),
                                (self._levels(True), -self._levels(True)))])

    def start_(self, means: List[float], signed: bool) -> None:
        self.clip.start_(means[signed])

    def forward(self, x: Tensor, rounding: bool = True) -> Tensor:
        if not self.initialized:
            return x
        return _Clip.apply(x, self.clip(), self.bits, self.is_signed,
                           rounding)

    def code_range(self) -> CodeRange:
        levels, clip = self._levels(self.is_signed), self.clip.detached
        _, scale = F.quantize_codes(clip, clip, self.bits, self.is_signed)
        return CodeRange(float(scale), -levels if self.is_signed else 0,
                         levels)

    def value_range(self) -> Tuple[Tensor, Tensor]:
        clip = self.clip.detached
        return -clip * self.is_signed, clip

    def scalars(self, x: Optional[Tensor] = None) -> Dict[str, Tensor]:
        return dict(pact_act_clip=self.clip.detached) if self.initialized \
            else {}
