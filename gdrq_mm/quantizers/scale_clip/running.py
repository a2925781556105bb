"""What holds a running threshold, its sign and its age."""
import dataclasses
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
    'model that trains: for ours, theirs in zip(averaged.module.buffers(), '
    'model.buffers()): ours.is_floating_point() or ours.copy_(theirs)')


@dataclasses.dataclass
class Known:
    """What is known of a running threshold without asking the device.

    In an object of its own: to set an attribute of a module takes as long as
    a small operation.

    Args:
        updates (int): How many there were.
        initialized (bool): Whether there is a threshold.
        signed (bool): Whether the input has negative values.
        asymmetric (bool): Whether a signed one has a zero point.
        settled (bool): Whether all of that is as the buffers say, and no
            longer asked.
        counts_negatives (bool): Whether this step counts negative values.
        called (bool): Whether there were data since the last update.
        measured (bool): Whether statistics were taken of them.
    """
    updates: int = 0
    initialized: bool = False
    signed: bool = False
    asymmetric: bool = False
    settled: bool = False
    counts_negatives: bool = True
    called: bool = False
    measured: bool = False


class RunningClip(ActivationQuantizer):
    """An activation on the grid of a threshold ``T_a`` that data move.

    Unsigned, or signed where the input has negative values. One that has seen
    no data lets its input pass unchanged. Subclasses say what moves ``T_a``.

    Args:
        bits (int): 2 to 8.
        headroom (float): See :class:`ActivationQuantizer`. Defaults to 1.
    """

    fused = True
    non_negative: Tuple[str, ...] = ('clip', 'num_updates')
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
        self.known = Known()

    def forget(self) -> None:
        self.known.settled = False

    def _read(self) -> Known:
        # Asked of the device only until the sign is settled.
        known = self.known
        if not known.settled:
            known.updates = int(self.num_updates)
            if not known.updates and self.clip > 0:
                raise RuntimeError(HALF_AVERAGED)
            known.initialized = known.updates > 0
            known.signed = bool(self.signed)
            known.settled = known.updates >= self.SIGN_UPDATES
            # As it was before a checkpoint of these updates, see below.
            known.counts_negatives = not known.settled or \
                known.updates % self.SIGN_INTERVAL == 0
        return known

    @property
    def initialized(self) -> bool:
        """Whether a threshold is there."""
        return self._read().initialized

    @property
    def settled(self) -> bool:
        """Whether there is a threshold whose sign is not looked at now."""
        known = self._read()
        return known.settled and not known.counts_negatives

    @property
    def is_signed(self) -> bool:
        """Whether the input was seen to have negative values."""
        return self._read().signed

    def code_range(self) -> CodeRange:
        levels = F.num_levels(self.bits, self.is_signed)
        _, scale = F.quantize_codes(self.clip, self.clip, self.bits,
                                    self.is_signed)
        return CodeRange(float(scale), -levels if self.is_signed else 0,
                         levels)

    def grid(self, seen: Optional[Tensor] = None) -> Optional[Grid]:
        # None: no threshold yet, the input passes unchanged.
        known = self._read()
        if not known.initialized:
            return None
        return Grid(self.clip, self.bits, known.signed, seen=seen)

    def count_negatives(self) -> None:
        self._read().counts_negatives = True

    def _count_update(self) -> None:
        known = self.known
        if not known.called:
            return
        known.called = known.measured = False
        known.updates += 1
        if known.settled:
            known.counts_negatives = known.updates % self.SIGN_INTERVAL == 0

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
