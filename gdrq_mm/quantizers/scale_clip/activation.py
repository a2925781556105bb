"""Activations on running thresholds ``T_a`` (Eq. 10, 11)."""
from dataclasses import dataclass
from typing import Dict, Iterable, Optional

import torch
from torch import Tensor

from ... import functional as F
from ...errors import check
from ...kernels import Grid, eager
from ..base import ActivationQuantizer, CodeRange
from ..first_batch import sum_over_ranks_
from ..schemes import ActivationScheme, is_number
from .defaults import check_k, default_k

HALF_AVERAGED = (
    'a model average left the integers of an activation quantizer '
    '(num_updates, signed) as they were before training; copy them from the '
    'model that trains: for ours, theirs in zip(averaged.buffers(), '
    'model.buffers()): ours.is_floating_point() or ours.copy_(theirs)')


@dataclass(frozen=True)
class ScaleClipActivationScheme(ActivationScheme):
    """How Scale-Clip quantizes activations.

    Args:
        type (str): Defaults to 'ScaleClip'.
        bits (int, optional): 2 to 8. Defaults to None: activations stay
            float.
        site (str): 'input' or 'relu', see :class:`ActivationScheme`. Defaults
            to 'input'.
        k (float, optional): ``T_a`` descends to ``k * mean|A|``. Defaults to
            None: by bits and by the sign of the input.
        lr (float): Step of that descent a training step, in (0, 1]. Defaults
            to 0.01.
        threshold (str): Which values the mean is taken of: 'mean' of all (Eq.
            10), whose default ``k`` takes half of them for zeros, or 'nonzero'
            of those that are not zero, however many there are. Defaults to
            'mean'.
    """
    k: Optional[float] = None
    lr: float = 0.01
    threshold: str = 'mean'

    def __post_init__(self):
        super().__post_init__()
        check_k(self.k)
        check(is_number(self.lr) and 0 < self.lr <= 1, 'lr', self.lr,
              'a number in (0, 1]')
        check(self.threshold in ('mean', 'nonzero'), 'threshold',
              self.threshold, "'mean' or 'nonzero'")

    def describe(self) -> str:
        text = super().describe()
        return text if self.threshold == 'mean' else \
            f'{text}, threshold {self.threshold}'


class ScaleClipActivation(ActivationQuantizer):
    """Quantize an activation with a running threshold ``T_a`` (Eq. 10, 11).

    ``T_a`` descends towards ``k * mean|A|``; Eq. 10 as printed has the wrong
    sign and diverges. A quantizer that has seen no data lets its input pass
    unchanged.

    Args:
        bits (int): 2 to 8.
        k (float, optional): Threshold factor. Defaults to None: by bits and
            sign, see :func:`default_k`.
        lr (float): Step of Eq. 10; the first steps average instead. Defaults
            to 0.01.
        headroom (float): Factor of the default ``k``, for tensors with longer
            tails than a half-normal distribution. Defaults to 1.
        threshold (str): 'mean' or 'nonzero', see the scheme. Defaults to
            'mean'.
    """

    Scheme = ScaleClipActivationScheme
    fused = True
    non_negative = ('clip', )
    # Negative values are counted in the first updates, and then once in so
    # many: counting takes a pass of its own.
    SIGN_UPDATES = 10
    SIGN_INTERVAL = 100
    # Share of them that makes the input a signed one; fewer are clipped.
    NEGATIVE_SHARE = 1e-3
    # A mean over the data of one step counts as no more than so many times
    # the threshold at hand (and in the first updates as no less than the
    # inverse): one outlier moves it by a tenth.
    OUTLIER = 11.

    def __init__(self, bits: int, k: Optional[float], lr: float,
                 headroom: float = 1., threshold: str = 'mean') -> None:
        super().__init__(bits, headroom)
        self.k = k
        self.lr = lr
        self.threshold = threshold
        self.register_buffer('clip', torch.zeros(()))
        self.register_buffer('signed', torch.zeros((), dtype=torch.bool))
        self.register_buffer('num_updates', torch.zeros(
            (), dtype=torch.long))
        # What the forwards since the last update saw: sum |x|, number of
        # elements, of those that are not zero, and, where they are counted, of
        # negative ones.
        self.register_buffer('seen', torch.zeros(4), persistent=False)
        # Beside the buffers, for updates of all layers at once.
        self.register_buffer('_constants', torch.tensor(
            [self.k_of(False), self.k_of(True), lr, self.SIGN_UPDATES,
             threshold == 'nonzero']),
            persistent=False)
        self._settled = False
        self._counts_negatives = True
        self._updates = 0
        self._initialized = self._is_signed = False

    def extra_repr(self) -> str:
        text = f'bits={self.bits}, k={self.k}, lr={self.lr}'
        if self.threshold != 'mean':
            text += f', threshold={self.threshold!r}'
        return text if self.headroom == 1 else \
            f'{text}, headroom={self.headroom}'

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
            self._counts_negatives = not self._settled

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

    def k_of(self, signed: bool) -> float:
        return self.headroom * default_k(
            self.bits, signed, self.threshold == 'nonzero') \
            if self.k is None else self.k

    def grid(self, seen: Optional[Tensor] = None) -> Optional[Grid]:
        # None: no threshold yet, the input passes unchanged.
        if not self.initialized:
            return None
        return Grid(self.clip, self.bits, self.is_signed, seen=seen)

    def observe_later(self, x: Tensor) -> Optional[Tensor]:
        if self.settled:
            return self.seen
        self.observe(x)
        return None

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        x = x.detach()
        eager.see(self.seen, x)
        if self._counts_negatives:
            self.seen[3] += (x < 0).sum()

    @classmethod
    @torch.no_grad()
    def update_(cls, quantizers: Iterable['ScaleClipActivation']) -> None:
        """Move every ``T_a`` towards ``k * mean|A|`` (Eq. 10, descending).

        All layers at once, with one all-reduce where training is distributed:
        thresholds are equal on all ranks, those of the joint batch.
        """
        quantizers = list(quantizers)
        seen = torch.stack([q.seen for q in quantizers])
        sum_over_ranks_(seen)
        k_unsigned, k_signed, lr, first_updates, of_nonzero = torch.stack(
            [q._constants for q in quantizers]).T
        clip = torch.stack([q.clip for q in quantizers])
        signed = torch.stack([q.signed for q in quantizers])
        updates = torch.stack([q.num_updates for q in quantizers])

        total, count, nonzero, negative = seen.T
        mean = total / torch.where(of_nonzero > 0, nonzero.clamp(min=1),
                                   count)
        valid = (count > 0) & torch.isfinite(mean)
        now_signed = signed | (
            valid & (negative / count > cls.NEGATIVE_SHARE))
        turned = now_signed & ~signed & (updates >= first_updates)
        # A sign that is seen late changes k: carry the threshold over.
        clip = torch.where(now_signed & ~signed, clip * k_signed / k_unsigned,
                           clip)
        # The first updates average all that was seen (the first one sets the
        # threshold), later ones descend with lr.
        step = torch.maximum(lr, 1 / (updates + 1))
        target = torch.where(now_signed, k_signed, k_unsigned) * mean
        clip = torch.where(valid & (target > 0) & (updates < first_updates),
                           clip.minimum(cls.OUTLIER * target), clip)
        target = torch.where(clip > 0, target.minimum(cls.OUTLIER * clip),
                             target)
        clip = torch.where(valid, clip - step * (clip - target), clip)
        updates = updates + valid

        for name, values in dict(clip=clip, signed=now_signed,
                                 num_updates=updates).items():
            torch._foreach_copy_([getattr(q, name) for q in quantizers],
                                 list(values.unbind()))
        torch._foreach_zero_([q.seen for q in quantizers])
        if any(q._counts_negatives and q._settled for q in quantizers):
            for quantizer, late in zip(quantizers, turned.tolist()):
                quantizer.turned_signed |= late
                quantizer.forget()
        for quantizer in quantizers:
            quantizer._count_update()

    def _count_update(self) -> None:
        self._updates += 1
        if self._settled:
            self._counts_negatives = self._updates % self.SIGN_INTERVAL == 0

    def scalars(self, x: Optional[Tensor] = None) -> Dict[str, Tensor]:
        return dict(gdrq_act_clip=self.clip) if self.initialized else {}

    @torch.no_grad()
    def clipped_fraction(self, x: Tensor) -> Tensor:
        return (x.abs() > self.clip).sum() / x.count_nonzero().clamp(min=1)

    def forward(self, x: Tensor, rounding: bool = True) -> Tensor:
        if not self.initialized:
            return x
        if rounding:
            return F.linear_quantize(x, self.clip, self.bits, self.is_signed)
        clip = self.clip.to(x.dtype)
        return torch.clamp(
            x, -clip if self.is_signed else torch.zeros_like(clip), clip)
