"""Activations on thresholds that are learned by gradient."""
import math
from typing import Dict, Optional

from torch import Tensor

from ... import functional as F
from ..lsq import LearnedStep
from ..pact import PACTActivation


class LearnedClipActivation(PACTActivation):
    """Quantize an activation with a learned threshold ``T_a``.

    On the grid of Scale-Clip, ``T_a`` has the gradient of LSQ's step size
    ``T_a / L``: where ``x`` is inside the range ``(round(x / s) - x / s) /
    L``, where it is clipped 1, times ``1 / sqrt(N L)``; no weight decay. As
    in PACT, it starts at the least squared error of the first batch.

    Args:
        bits (int): 2 to 8.
        headroom (float): Not used: that start fits any tails.
    """
    passes_unrounded = True
    decays = False

    def extra_repr(self) -> str:
        return f"bits={self.bits}, threshold='learned'"

    def forward(self, x: Tensor, rounding: bool = True) -> Tensor:
        if not (rounding and self.initialized):
            return x
        levels = self._levels(self.is_signed)
        return LearnedStep.apply(
            x, F.divide(self.clip(), levels),
            -levels if self.is_signed else 0, levels,
            1 / math.sqrt(max(x.numel(), 1) * levels))

    def scalars(self, x: Optional[Tensor] = None) -> Dict[str, Tensor]:
        return dict(gdrq_act_clip=self.clip.detached) if self.initialized \
            else {}
