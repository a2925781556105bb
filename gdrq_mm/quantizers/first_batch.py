"""Activation quantizers that learn, and start from what they first see."""
import math
from typing import Iterable, List, Tuple

import torch
import torch.distributed as dist
from torch import Tensor

from .base import ActivationQuantizer
from .learned_value import LearnedValue


def is_distributed() -> bool:
    """Whether several processes train the model."""
    return dist.is_available() and dist.is_initialized() \
        and dist.get_world_size() > 1


def sum_over_ranks_(values: Tensor) -> None:
    """Sum in place over the processes of a distributed training."""
    if is_distributed():
        dist.all_reduce(values)


class FirstBatchActivation(ActivationQuantizer):
    """An activation quantizer whose first batch says where it starts.

    Until then the input passes unchanged. The first batch, of all ranks
    together, also says whether codes are signed: a share of negative values
    that is no accident makes them so. Where it comes later, they turn signed
    then; negative values are counted once in ``SIGN_INTERVAL`` steps.

    Subclasses say what they need of an input (:meth:`statistics`), how they
    start from its mean over the values of all forwards and ranks
    (:meth:`start_`), whether they have (:meth:`has_started`), and what a
    sign that comes late changes (:meth:`turn_signed_`).

    How many steps there were is not stored: after a load they are counted
    from the last one before negative values are counted.

    Args:
        bits (int): 2 to 8.
        headroom (float): See :class:`ActivationQuantizer`. Defaults to 1.
    """
    NEGATIVE_SHARE = 1e-3
    # One pass in 20 steps costs little; a training of a few dozen has one.
    SIGN_INTERVAL = 20
    NUM_STATISTICS = 0
    # Whether inputs pass unchanged until rounding begins: what the first
    # batch of all said is no start then.
    passes_unrounded = False

    def __init__(self, bits: int, headroom: float = 1.) -> None:
        super().__init__(bits, headroom)
        self.register_buffer('signed', torch.zeros((), dtype=torch.bool))
        # Sums over the forwards since the last update: values, negative
        # ones, statistics times values.
        self.register_buffer('seen', torch.zeros(2 + self.NUM_STATISTICS),
                             persistent=False)
        self._initialized = self._is_signed = False
        self._counts_negatives, self._updates = False, 0

    def extra_repr(self) -> str:
        return f'bits={self.bits}'

    def statistics(self, x: Tensor) -> Tensor:
        """What the start needs of an input, shape ``(NUM_STATISTICS, )``."""
        return x.new_zeros(0)

    def start_(self, means: List[float], signed: bool) -> None:
        """Set the range from finite means of the statistics."""

    def has_started(self) -> bool:
        """Whether there is a range; reads from the device."""
        raise NotImplementedError

    def turn_signed_(self) -> None:
        """Change what stands for the range; ``signed`` says so already."""

    def codes_between(self, signed: bool) -> Tuple[int, int]:
        """The least and the greatest code."""
        return (-2**(self.bits - 1), 2**(self.bits - 1) - 1) if signed else \
            (0, 2**self.bits - 1)

    def forget(self) -> None:
        super().forget()
        self._initialized = False
        self._updates = self.SIGN_INTERVAL - 1

    def restart(self, trained: bool = True) -> None:
        if self.passes_unrounded:
            for child in self.children():
                if isinstance(child, LearnedValue):
                    child.stop_()
            self.signed.zero_()
            self.forget()

    def _read(self) -> None:
        # Asked of the device only until there is a range.
        if not self._initialized:
            self._initialized = self.has_started()
            self._is_signed = bool(self.signed)

    @property
    def initialized(self) -> bool:
        self._read()
        return self._initialized

    @property
    def is_signed(self) -> bool:
        self._read()
        return self._is_signed

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        if not x.numel() or self.initialized and not self._counts_negatives:
            return
        x = x.detach().float()
        count = x.numel()
        negative = (x < 0).sum() / count
        self.seen[:2] += count * torch.stack([
            torch.ones_like(negative), negative])
        if not self.initialized:
            # Where one value is infinite (AMP skips such a step) the others
            # start nothing either.
            found = (count * self.statistics(x)).to(self.seen)
            self.seen[2:] += torch.where(x.isfinite().all(), found, torch.nan)

    @classmethod
    @torch.no_grad()
    def update_(cls, quantizers: Iterable['ActivationQuantizer']) -> None:
        quantizers = list(quantizers)
        waiting = [each for each in quantizers if each._counts_negatives
                   or not each.initialized]
        if waiting:
            seen = torch.stack([each.seen for each in waiting])
            sum_over_ranks_(seen)
            for each, (count, negative, *sums) in zip(waiting, seen.tolist()):
                if count:
                    each._use(negative / count > cls.NEGATIVE_SHARE,
                              [total / count for total in sums])
                each.seen.zero_()
        for each in quantizers:
            each._count_update()

    def _use(self, signed: bool, means: List[float]) -> None:
        """What was seen since the last update, on all ranks."""
        if not self.initialized:
            if all(map(math.isfinite, means)):
                self.signed.fill_(signed)
                self.start_(means, signed)
        elif signed:
            self.signed.fill_(True)
            self.turn_signed_()
            self._is_signed = self.turned_signed = True

    def count_negatives(self) -> None:
        self._counts_negatives = self.initialized and not self.is_signed

    def _count_update(self) -> None:
        self._updates += 1
        self._counts_negatives = False
        if self._updates % self.SIGN_INTERVAL == 0:
            self.count_negatives()
