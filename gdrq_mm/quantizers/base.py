"""What the rest of gdrq_mm asks of a quantizer, and who asks.

``forward(x, rounding)`` defines a quantizer, and is what runs, unless it says
``fused = True``: then the kernels compute the same from its ``grid``, with a
straight-through gradient inside the range; a subclass with another ``forward``
is not fused. All else has a default. Parameters that require a gradient are
learned: optimizers must hold them, see :mod:`gdrq_mm.training.learned`.
docs/extend.md has a whole quantizer as an example.

================== ===================== ====================================
method             of                    called
================== ===================== ====================================
forward            both                  by layers, in every forward
grid               both, where fused     by layers, in every forward
start_step         weights               before the forward of a training step
after_step         weights               after the optimizer stepped the weight
share              weights               instead, of a weight with two layers
build              both                  when a model is converted
observe            activations           with every input that counts
observe_later      activations, fused    instead: kernels may do that later
update_            activations           after a step, and in ``calibrate``
count_negatives    activations           by ``calibrate``, before every batch
end_first_looks    activations           by what measures a training step
restart            both                  where the other phase begins
forget             both                  after buffers were written (a load)
learned_parameters both                  before a training, at its first step
scalars            both                  when the log is due
value_range        activations           the same, as clipped_fraction
codes              weights               to merge, to export
packed_codes       weights               to pack, as packed_state
decode             weights               to load what was packed
code_range         activations           to merge, to export
================== ===================== ====================================
"""
from typing import Dict, Iterable, List, Optional, Tuple, Type

import torch
from torch import Tensor, nn

from ..kernels import Grid
from .code_range import CodeRange
from .digits import KeepsDigits
from .learned_value import LearnedValue
from .schemes import DEFAULT_TYPE, ActivationScheme, WeightScheme


class Quantizer(KeepsDigits):
    """What quantizers of weights and of activations have in common.

    Args:
        bits (int): Number of bits.

    Attributes:
        fused (bool): Whether the kernels may run ``grid`` in place of
            ``forward``.
        non_negative (tuple[str, ...]): State-dict entries that no training
            takes below zero; a file where one is, is refused.
        greatest (dict[str, float]): State-dict entries with a greatest value;
            a file where one is above it, is refused.
        added_later (tuple[str, ...]): State-dict entries that a file may
            lack, as those of earlier versions do; zero stands for them.
        decays (bool): Whether weight decay acts on what it learns.
    """
    fused = decays = False
    added_later: Tuple[str, ...] = ()
    non_negative: Tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)

        def place(name: str) -> int:
            return next(place for place, each in enumerate(cls.__mro__)
                        if name in vars(each))

        # What the kernels compute is not what another ``forward`` does.
        if place('forward') < min(place('fused'), place('grid')):
            cls.fused = False

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.greatest: Dict[str, float] = {}

    def forward(self, x: Tensor, rounding: bool = True) -> Tensor:
        """The quantized ``x``, with the gradient that trains it.

        Args:
            x (Tensor): A weight or an activation.
            rounding (bool): False in the 'reshape' phase: the range acts,
                rounding does not.
        """
        raise NotImplementedError

    def grid(self, x: Optional[Tensor]) -> Optional[Grid]:
        """What the kernels are to compute; asked only where ``fused``.

        Args:
            x (Tensor, optional): The weight; of activations, what
                :meth:`ActivationQuantizer.observe_later` gave.
        """
        raise NotImplementedError

    def restart(self, trained: bool = True) -> None:
        """A phase begins (of activations: rounding): forget what was found
        for the last one and, of a weight that is not ``trained``, averages."""

    def forget(self) -> None:
        """Parameters or buffers were written from outside."""
        for child in self.children():
            if isinstance(child, LearnedValue):
                child.forget()

    def scalars(self, x: Optional[Tensor] = None) -> Dict[str, Tensor]:
        """Figures for the log, means over layers are shown.

        Args:
            x (Tensor, optional): The weight; None for activations.
        """
        return {}

    def learned_parameters(self) -> List[nn.Parameter]:
        """Parameters that an optimizer must hold."""
        return [parameter for parameter in self.parameters()
                if parameter.requires_grad]


class WeightQuantizer(Quantizer):
    """A quantizer of weights; a filter is one slice ``weight[i]``.

    Args:
        num_filters (int): First dimension of the weight.
        bits (int): 1 to 8.
        group_size (int): Filters that share a scale, -1 for the whole layer.

    Attributes:
        Scheme (type): Its config, a :class:`WeightScheme`; fields that the
            base does not have are keyword arguments of the quantizer.
    """
    Scheme: Type[WeightScheme] = WeightScheme

    def __init__(self, num_filters: int, bits: int, group_size: int) -> None:
        super().__init__(bits)
        self.num_filters = num_filters
        self.group_size = group_size

    @classmethod
    def build(cls, scheme: WeightScheme, num_filters: int
              ) -> 'WeightQuantizer':
        """The quantizer of ``num_filters`` that a ``Scheme`` asks for."""
        return cls(num_filters=num_filters, bits=scheme.bits,
                   group_size=scheme.group_size, **scheme.options())

    def start_step(self, weight: Tensor) -> None:
        """Before the forward of a training step."""

    def after_step(self, weight: Tensor) -> None:
        """The optimizer has stepped ``weight``; it may be changed in place."""

    def share(self, other: 'WeightQuantizer', weight: Tensor) -> None:
        """As :meth:`after_step`, where ``other`` was asked for the same
        ``weight`` before."""

    @property
    def code_step(self) -> int:
        """Distance between codes; :meth:`lowest_code` is the first one."""
        return 1

    @property
    def lowest_code(self) -> int:
        """The first of the ``2^bits`` (or fewer) codes."""
        return -2**(self.bits - 1)

    @property
    def highest_code(self) -> int:
        """The last one; a file with another is refused."""
        return self.lowest_code + self.code_step * (2**self.bits - 1)

    def codes(self, weight: Tensor) -> Tuple[Tensor, Tensor]:
        """Integer codes of ``weight`` and the scale of every filter.

        Returns:
            tuple[Tensor, Tensor]: Codes (integers in float32, or float64 as
            ``weight``), shaped like it, and scales of shape ``(num_filters,
            1, ...)``; their product is what :meth:`forward` gives.

        Raises:
            ValueError: No integer kernel knows them, as its levels are not
                equally spaced.
        """
        raise ValueError(
            f'{type(self).__name__} has no integer codes, as its levels are '
            'not equally spaced: it can be trained and tested; to merge or '
            'export, train with a type that has them, such as '
            f'{DEFAULT_TYPE}')

    def packed_codes(self, weight: Tensor) -> Tensor:
        """Integers of ``weight`` from :attr:`lowest_code` on, in steps of
        :attr:`code_step`; those of :meth:`codes` where there are some."""
        return self.codes(weight)[0]

    def packed_state(self, weight: Tensor) -> Dict[str, Tensor]:
        """State-dict entries that go with the codes of ``weight``."""
        return dict(self.state_dict())

    def decode(self, codes: Tensor, entries: Dict[str, Tensor]) -> Tensor:
        """The weight that codes stand for.

        Args:
            codes (Tensor): Integers of :meth:`packed_codes`, shaped like the
                weight.
            entries (dict[str, Tensor]): As :meth:`packed_state` gave them.
        """
        raise NotImplementedError


class ActivationQuantizer(Quantizer):
    """A quantizer of activations.

    Args:
        bits (int): 2 to 8.
        headroom (float): How much longer its tails are than those of a
            layer's input; 3 for outputs of ``residual``. Defaults to 1.

    Attributes:
        Scheme (type): Its config, an :class:`ActivationScheme`; fields that
            the base does not have are keyword arguments of the quantizer.
        initialized (bool): Whether it has a range; until then inputs pass.
        settled (bool): Whether statistics may be taken while the kernels
            quantize; copies of a model get the range until then.
        is_signed (bool): Whether the input is known to have negative values.
        turned_signed (bool): Whether they came to be so after inputs were
            quantized without; training says so and sets it back.
        has_zero_point (bool): Whether a signed input has codes from 0 on.
    """
    Scheme: Type[ActivationScheme] = ActivationScheme
    turned_signed, has_zero_point = False, False
    initialized, settled, is_signed = True, True, False

    def __init__(self, bits: int, headroom: float = 1.) -> None:
        super().__init__(bits)
        self.headroom = headroom

    @classmethod
    def build(cls, scheme: ActivationScheme, **options
              ) -> 'ActivationQuantizer':
        """The quantizer that a scheme asks for.

        Args:
            scheme (ActivationScheme): A ``Scheme`` of this class.
            options: Further keyword arguments, such as ``headroom``.
        """
        return cls(bits=scheme.bits, **scheme.options(), **options)

    def observe(self, x: Tensor) -> None:
        """Take statistics of an input of the running step."""

    def observe_later(self, x: Tensor) -> Optional[Tensor]:
        """Where the kernels put statistics of ``x``; None: they are taken
        now."""
        self.observe(x)
        return None

    def count_negatives(self) -> None:
        """The next step counts negative values, whether it is due or not."""

    def end_first_looks(self) -> None:
        """Count as done what only the first steps of a training do."""

    @classmethod
    def update_(cls, quantizers: Iterable['ActivationQuantizer']) -> None:
        """After a training step: use the statistics that were taken.

        Args:
            quantizers (iterable): All of this class in the model, so that one
                all-reduce serves them all.
        """

    def code_range(self) -> CodeRange:
        """The grid in force.

        Raises:
            ValueError: Its levels are not equally spaced.
        """
        raise ValueError(
            f'{type(self).__name__} has no uniform grid: it can be trained '
            'and tested; to merge or export, train with a type that has one, '
            f'such as {DEFAULT_TYPE}')

    def value_range(self) -> Optional[Tuple[Tensor, Tensor]]:
        """Least and greatest value that is not clipped; None: all pass."""
        return None

    @torch.no_grad()
    def clipped_fraction(self, x: Tensor) -> Tensor:
        """Share of the non-zero elements beyond :meth:`value_range`."""
        ends = self.value_range()
        if ends is None:
            return x.new_zeros(())
        low, high = ends
        return ((x < low) | (x > high)).sum() / x.count_nonzero().clamp(min=1)
