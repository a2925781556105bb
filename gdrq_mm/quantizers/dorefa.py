"""DoReFa: weights through tanh, activations clipped to 1; nothing learned.

Paper: "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with
Low Bitwidth Gradients" (Zhou et al., 2016), arXiv 1606.06160. Its gradients
of few bits are not part of this.
"""
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from .. import functional as F
from .base import WeightQuantizer
from .code_range import CodeRange
from .first_batch import FirstBatchActivation
from .schemes import WeightScheme


class _RoundTanh(torch.autograd.Function):
    """Codes of ``tanh(w)`` on ``2^bits`` levels from ``-top`` to ``top``."""

    @staticmethod
    def forward(ctx, weight, top, levels):
        ctx.save_for_backward(weight)
        return (codes_of(weight, top, levels) * F.divide(top, levels)).to(
            weight.dtype)

    @staticmethod
    def backward(ctx, grad):
        weight, = ctx.saved_tensors
        return grad * (1 - torch.tanh(weight).square()), None, None


class _Sign(torch.autograd.Function):
    """``sign(w) * level``, ``sign(0) = +1``; straight-through gradient."""

    @staticmethod
    def forward(ctx, weight, level):
        return (torch.where(weight < 0, -1., 1.) * level).to(weight.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def codes_of(weight: Tensor, top: Tensor, levels: int) -> Tensor:
    """Odd codes ``-levels .. levels`` of a weight."""
    ratio = torch.tanh(F.at_least_float32(weight)) / torch.where(
        top > 0, top, 1.)
    index = ((ratio.clamp(-1, 1) / 2 + .5) * levels).round()
    return 2 * index - levels


@dataclass(frozen=True)
class DoReFaWeightScheme(WeightScheme):
    """How DoReFa quantizes weights.

    Args:
        type (str): 'DoReFa', or 'PACT', whose paper takes the same weights.
        bits (int, optional): 1 to 8. Defaults to None: weights stay float.
        group_size (int): Filters that share a scale; -1 for the whole layer,
            as in the paper. Defaults to -1.
    """
    group_size: int = -1


class DoReFaWeight(WeightQuantizer):
    """Weights on ``2^bits`` levels of ``tanh(w)``, none of them zero.

    The paper's Eq. 9 is ``2 q(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1``, at 1
    bit Eq. 8, ``sign(w) * mean|w|``; gradients are straight-through. Ours:
    Eq. 9 times ``max|tanh(w)|``, whose gradient is left out. Where batch
    normalization follows, that changes nothing, as it takes the scale of a
    weight back; layers without one, and those of a float model that training
    starts from, keep their scale.

    Args:
        num_filters (int): First dimension of the weight.
        bits (int): 1 to 8.
        group_size (int): Filters that share the maximum, -1 for all.
    """
    Scheme = DoReFaWeightScheme
    non_negative = ('top', )

    def __init__(self, num_filters: int, bits: int, group_size: int) -> None:
        super().__init__(num_filters, bits, group_size)
        self.levels = 2**bits - 1
        # Of the weight at hand, the end of its grid; a Parameter, so that
        # model averages have one that goes with their weights.
        self.top = nn.Parameter(torch.zeros(
            F.num_groups(num_filters, group_size)), requires_grad=False)
        self._is_set = False

    def learned_parameters(self) -> List[nn.Parameter]:
        # Not ``top``, whatever a hook that unfreezes the model makes of it.
        return [each for each in super().learned_parameters()
                if each is not self.top]

    def extra_repr(self) -> str:
        return f'bits={self.bits}, group_size={self.group_size}'

    def forget(self) -> None:
        self._is_set = False

    def _top_of(self, weight: Tensor) -> Tensor:
        if self.bits == 1:
            return F.mean_abs(weight.detach(), self.group_size)
        size = len(weight) if self.group_size == -1 else self.group_size
        return torch.tanh(F.at_least_float32(torch.stack([
            each.abs().amax() for each in weight.detach().split(size)])))

    def _tops(self, weight: Tensor) -> Tensor:
        """The end of the grid of every filter."""
        self._is_set = self._is_set or bool(self.top.any())
        top = self.top if self._is_set else self._top_of(weight)
        return F.expand_clip(top, weight, self.group_size)

    def start_step(self, weight: Tensor) -> None:
        self._tops(weight)
        if not self._is_set:
            self.after_step(weight)

    @torch.no_grad()
    def after_step(self, weight: Tensor) -> None:
        self.top.copy_(self._top_of(weight))

    def share(self, other: WeightQuantizer, weight: Tensor) -> None:
        self.after_step(weight)

    def forward(self, weight: Tensor, rounding: bool = True) -> Tensor:
        if not rounding:
            return weight
        top = self._tops(weight)
        return _Sign.apply(weight, top) if self.bits == 1 else \
            _RoundTanh.apply(weight, top, self.levels)

    @property
    def code_step(self) -> int:
        return 2

    @property
    def lowest_code(self) -> int:
        return -self.levels

    def packed_codes(self, weight: Tensor) -> Tensor:
        if self.bits == 1:
            return torch.where(weight.detach() < 0, -1., 1.)
        return codes_of(weight.detach(), self._tops(weight), self.levels)

    def codes(self, weight: Tensor) -> Tuple[Tensor, Tensor]:
        if self.levels > 127:
            raise ValueError(
                f'{type(self).__name__} at {self.bits} bits has codes up to '
                f'{self.levels}, which integer kernels of 8 bits do not hold; '
                'to merge or export, train these layers with 7 bits or with '
                "weight=dict(type='LSQ') in a rule")
        return self.packed_codes(weight), F.divide(
            self._tops(weight), self.levels)

    def packed_state(self, weight: Tensor) -> Dict[str, Tensor]:
        return dict(top=self.top if self.top.any() else self._top_of(weight))

    def decode(self, codes: Tensor, entries: Dict[str, Tensor]) -> Tensor:
        """A weight with these codes; ``tanh`` is undone."""
        top = F.expand_clip(entries['top'], codes, self.group_size)
        value = codes * F.divide(top, self.levels)
        # tanh of float32 values reaches 1.
        return value if self.bits == 1 else torch.atanh(
            value.clamp(-1 + 2**-23, 1 - 2**-23))

    def scalars(self, x: Optional[Tensor] = None) -> Dict[str, Tensor]:
        return dict(dorefa_weight_top=self.top.mean())


class DoReFaActivation(FirstBatchActivation):
    """Activations clipped to 1, as bounded activation functions give them.

    ``q(clip(x, 0, 1))`` of the paper (Section 2.6). Ours: inputs with
    negative values are clipped to -1 as well and have signed codes. The range
    is never fitted, so a float model whose activations are larger loses much
    until training, with batch normalization, has scaled them down.

    Args:
        bits (int): 2 to 8.
        headroom (float): The clip value in place of 1. Defaults to 1.
    """

    def __init__(self, bits: int, headroom: float = 1.) -> None:
        super().__init__(bits, headroom)
        self.register_buffer('started', torch.zeros((), dtype=torch.bool))

    def has_started(self) -> bool:
        return bool(self.started)

    def start_(self, means: list, signed: bool) -> None:
        self.started.fill_(True)

    def forward(self, x: Tensor, rounding: bool = True) -> Tensor:
        if not self.initialized:
            return x
        top = x.new_tensor(self.headroom)
        if not rounding:
            return torch.clamp(x, -top if self.is_signed else 0 * top, top)
        return F.linear_quantize(x, top, self.bits, self.is_signed)

    def code_range(self) -> CodeRange:
        levels = F.num_levels(self.bits, self.is_signed)
        top = torch.tensor(self.headroom)
        _, scale = F.quantize_codes(top, top, self.bits, self.is_signed)
        return CodeRange(float(scale), -levels if self.is_signed else 0,
                         levels)

    def value_range(self) -> Tuple[Tensor, Tensor]:
        top = torch.tensor(self.headroom)
        return -top * self.is_signed, top
