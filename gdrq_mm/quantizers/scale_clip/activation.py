"""Activations on running thresholds ``T_a`` (Eq. 10, 11)."""
from typing import Dict, Iterable, List, Optional, Type

import torch
from torch import Tensor

from ...kernels import eager
from ..base import ActivationQuantizer
from ..first_batch import is_distributed, sum_over_ranks_
from .defaults import default_k
from .kinds import kind_of
from .running import RunningClip
from .scheme import ScaleClipActivationScheme


class ScaleClipActivation(RunningClip):
    """Quantize an activation with a running threshold ``T_a`` (Eq. 10, 11).

    ``T_a`` descends towards ``k * mean|A|``; Eq. 10 as printed has the wrong
    sign and diverges.

    Args:
        bits (int): 2 to 8.
        k (float, optional): Threshold factor; None: by bits and sign, see
            :func:`default_k`.
        lr (float): Step of Eq. 10; the first steps average instead.
        headroom (float): Factor of the default ``k``, for tensors with longer
            tails than a half-normal distribution. Defaults to 1.
        threshold (str): 'mean' or 'nonzero', see the scheme. Defaults to
            'nonzero'.
    """

    Scheme = ScaleClipActivationScheme
    # What to build for a threshold that is no mean; the package fills it.
    KINDS: Dict[str, Type[ActivationQuantizer]] = {}
    # A mean over the data of one step counts as no more than so many times
    # the threshold at hand (and in the first updates as no less than the
    # inverse): one outlier moves it by a tenth.
    OUTLIER = 11.

    def __init__(self, bits: int, k: Optional[float], lr: float,
                 headroom: float = 1., threshold: str = 'nonzero') -> None:
        super().__init__(bits, headroom)
        self.k = k
        self.lr = lr
        self.threshold = threshold
        # What the forwards since the last update saw: sum |x|, number of
        # elements, of those that are not zero, and, where they are counted, of
        # negative ones.
        self.register_buffer('seen', torch.zeros(4), persistent=False)
        # Beside the buffers, for updates of all layers at once.
        self.register_buffer('_constants', torch.tensor(
            [self.k_of(False), self.k_of(True), lr, self.SIGN_UPDATES,
             threshold == 'nonzero']),
            persistent=False)

    @classmethod
    def build(cls, scheme, **options) -> ActivationQuantizer:
        kind = kind_of(cls, ScaleClipActivation, cls.KINDS, 'threshold',
                       scheme.threshold)
        return kind(bits=scheme.bits, **scheme.options(), **options)

    def extra_repr(self) -> str:
        text = f'bits={self.bits}, k={self.k}, lr={self.lr}'
        if self.threshold != 'mean':
            text += f', threshold={self.threshold!r}'
        return text if self.headroom == 1 else \
            f'{text}, headroom={self.headroom}'

    def k_of(self, signed: bool) -> float:
        return self.headroom * default_k(
            self.bits, signed, self.threshold == 'nonzero') \
            if self.k is None else self.k

    def observe_later(self, x: Tensor) -> Optional[Tensor]:
        if self.settled:
            self.known.called |= x.numel() > 0
            self.known.measured = self.known.called
            return self.seen
        self.observe(x)
        return None

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        self.known.called = self.known.measured = True
        x = x.detach()
        eager.see(self.seen, x)
        if self.known.counts_negatives:
            self.seen[3] += (x < 0).sum()

    @classmethod
    @torch.no_grad()
    def update_(cls, quantizers: Iterable['ScaleClipActivation']) -> None:
        """Move every ``T_a`` towards ``k * mean|A|`` (Eq. 10, descending).

        All layers at once, with one all-reduce where training is distributed:
        thresholds are equal on all ranks, those of the joint batch.
        """
        quantizers = list(quantizers)
        counted = [q for q in quantizers
                   if q.known.called and not q.known.measured]
        if is_distributed() or any(q.known.measured for q in quantizers):
            for quantizer in counted:  # on all ranks, so by what is summed
                quantizer.seen[2] += 1
            cls._move_(quantizers)
        elif counted:  # steps without statistics count, and that is all
            torch._foreach_add_([q.num_updates for q in counted], 1)
        for quantizer in quantizers:
            quantizer._count_update()

    @classmethod
    def _move_(cls, quantizers: List['ScaleClipActivation']) -> None:
        """Use the statistics of a step; forget them."""
        seen = torch.stack([q.seen for q in quantizers])
        sum_over_ranks_(seen)
        k_unsigned, k_signed, lr, first_updates, of_nonzero = torch.stack(
            [q._constants for q in quantizers]).T
        clip = torch.stack([q.clip for q in quantizers])
        signed = torch.stack([q.signed for q in quantizers])
        updates = torch.stack([q.num_updates for q in quantizers])

        total, count, nonzero, negative = seen.T[:4]
        mean = total / torch.where(of_nonzero > 0, nonzero.clamp(min=1),
                                   count)
        # The mean of non-zeros says nothing of a step that had none.
        silent = (of_nonzero > 0) & (nonzero == 0) & (clip > 0)
        valid = (count > 0) & torch.isfinite(mean) & ~silent
        now_signed = signed | (
            valid & (negative / count > cls.NEGATIVE_SHARE))
        turned = now_signed & ~signed & (updates >= first_updates)
        # A sign that is seen late changes k: carry the threshold over.
        clip = torch.where(now_signed & ~signed, clip * k_signed / k_unsigned,
                           clip)
        step = cls.step_size(lr, updates)
        # The first data that are not all zero set it.
        step = torch.where(clip == 0, 1., step)
        target = torch.where(now_signed, k_signed, k_unsigned) * mean
        clip = torch.where(valid & (target > 0) & (updates < first_updates),
                           clip.minimum(cls.OUTLIER * target), clip)
        target = torch.where(
            clip > 0, target.minimum(cls.most_growth(updates) * clip), target)
        clip = torch.where(valid, clip - step * (clip - target), clip)
        cls.update_zero_points_(quantizers, seen, step * valid,
                                now_signed & ~signed)
        # Steps that gave no mean, such as those not looked at, count as well.
        updates = updates + (valid | (count == 0) & (nonzero > 0))

        for name, values in dict(clip=clip, signed=now_signed,
                                 num_updates=updates).items():
            torch._foreach_copy_([getattr(q, name) for q in quantizers],
                                 list(values.unbind()))
        torch._foreach_zero_([q.seen for q in quantizers])
        if any(q.known.counts_negatives and q.known.settled
               for q in quantizers):
            for quantizer, late in zip(quantizers, turned.tolist()):
                quantizer.turned_signed |= late
                quantizer.forget()

    @classmethod
    def step_size(cls, lr: Tensor, updates: Tensor) -> Tensor:
        """How far thresholds go towards their targets.

        The first updates average all that was seen (the first one sets the
        threshold), later ones descend with ``lr``.

        Args:
            lr (Tensor): ``lr`` of each quantizer.
            updates (Tensor): How many each has had.
        """
        return torch.maximum(lr, 1 / (updates + 1))

    @classmethod
    def most_growth(cls, updates: Tensor) -> Tensor:
        """As how many times the threshold the data of one step count at
        most.

        Args:
            updates (Tensor): How many each quantizer has had.
        """
        return torch.full_like(updates, cls.OUTLIER, dtype=torch.float32)

    @classmethod
    def update_zero_points_(cls, quantizers: Iterable['ScaleClipActivation'],
                            seen: Tensor, steps: Tensor,
                            turned: Tensor) -> None:
        """The same for zero points, where there are any.

        Args:
            quantizers (iterable): As in :meth:`update_`.
            seen (Tensor): Their statistics, one per row.
            steps (Tensor): How far thresholds went towards their targets.
            turned (Tensor): Which of them came to be signed.
        """
