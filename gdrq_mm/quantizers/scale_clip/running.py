"""What holds a running threshold, its sign and its age."""
from typing import Dict, Optional, Tuple

import torch
from torch import Tensor

from ... import functional as F
from ...kernels import Grid
from ..base import ActivationQuantizer
from ..code_range import CodeRange

HALF_AVERAGED = (
    'a model average left the integers of an activation quantizer '
    '(num_updates, signed) as they were before training; copy them from the '
    'model that trains: for ours, theirs in zip(averaged.buffers(), '
    'model.buffers()): ours.is_floating_point() or ours.copy_(theirs)')


class RunningClip(ActivationQuantizer):
    """An activation on the grid of a threshold ``T_a`` that data move.

    Unsigned, or signed where the input has negative values. One that has seen
    no data lets its input pass unchanged. Subclasses say what moves ``T_a``.

    Args:
        bits (int): 2 to 8.
        headroom (float): See :class:`ActivationQuantizer`. Defaults to 1.
    """

    fused = True
    non_negative: Tuple[str, ...] = ('clip', )
    # Negative values are counted in the first updates, and then once in so
    # many: counting takes a pass of its own, of which one in 20 steps costs
    # little; a training of a few dozen steps has one still.
    SIGN_UPDATES = 10
    SIGN_INTERVAL = 20
    # Share of them that makes the input a signed one; fewer are clipped.
    NEGATIVE_SHARE = 1e-3

    def __init__(self, bits: int, headroom: float = 1.) -> None:
        super().__init__(bits, headroom)
        self.register_buffer('clip', torch.zeros(()))
        self.register_buffer('signed', torch.zeros((), dtype=torch.bool))
        self.register_buffer('num_updates', torch.zeros(
            (), dtype=torch.long))
        self._settled = False
        self._counts_negatives = True
        self._updates = 0
        self._called = False  # since the last update
        self._initialized = self._is_signed = False

    def forget(self) -> None:
        self._settled = False

    def _read(self) -> None:
        # Asked of the device only until the sign is settled.
        if not self._settled:
            self._updates = int(self.num_updates)
            if not self._updates and self.clip > 0:
                raise RuntimeError(HALF_AVERAGED)
            self._initialized = self._updates > 0
            self._is_signed = bool(self.signed)
            self._settled = self._updates >= self.SIGN_UPDATES
            # As it was before a checkpoint of these updates, see below.
            self._counts_negatives = not self._settled or \
                self._updates % self.SIGN_INTERVAL == 0

    @property
    def initialized(self) -> bool:
        """Whether a threshold is there."""
        self._read()
        return self._initialized

    @property
    def settled(self) -> bool:
        """Whether there is a threshold whose sign is not looked at now."""
        self._read()
        return self._settled and not self._counts_negatives

    @property
    def is_signed(self) -> bool:
        """Whether the input was seen to have negative values."""
        self._read()
        return self._is_signed

    def code_range(self) -> CodeRange:
        levels = F.num_levels(self.bits, self.is_signed)
        _, scale = F.quantize_codes(self.clip, self.clip, self.bits,
                                    self.is_signed)
        return CodeRange(float(scale), -levels if self.is_signed else 0,
                         levels)

    def grid(self, seen: Optional[Tensor] = None) -> Optional[Grid]:
        # None: no threshold yet, the input passes unchanged.
        if not self.initialized:
            return None
        return Grid(self.clip, self.bits, self.is_signed, seen=seen)

    def count_negatives(self) -> None:
        self._read()
        self._counts_negatives = True

    def _count_update(self) -> None:
        if not self._called:
            return
        self._called = False
        self._updates += 1
        if self._settled:
            self._counts_negatives = self._updates % self.SIGN_INTERVAL == 0

    def scalars(self, x: Optional[Tensor] = None) -> Dict[str, Tensor]:
        return dict(gdrq_act_clip=self.clip) if self.initialized else {}

    def value_range(self) -> Tuple[Tensor, Tensor]:
        return -self.clip * self.is_signed, self.clip

    def forward(self, x: Tensor, rounding: bool = True) -> Tensor:
        if not self.initialized:
            return x
        if rounding:
            return F.linear_quantize(x, self.clip, self.bits, self.is_signed)
        clip = self.clip.to(x.dtype)
        return torch.clamp(
            x, -clip if self.is_signed else torch.zeros_like(clip), clip)
