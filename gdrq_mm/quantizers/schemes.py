"""What a config says of one quantizer: its type, its bits, its options."""
import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Dict, Optional

from ..errors import check

DEFAULT_TYPE = 'ScaleClip'
MOST_FILTERS = 65536  # in a group; no layer in use has more


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, float) or is_int(value)


@dataclass(frozen=True)
class WeightScheme:
    """How weights are quantized: what every type of quantizer takes.

    A type with options of its own has a subclass as its ``Scheme``.

    Args:
        type (str): Name in ``QUANTIZERS``. Defaults to 'ScaleClip'.
        bits (int, optional): 1 to 8. Defaults to None: weights stay float.
        group_size (int): Filters that share a scale; -1 for the whole layer.
            Defaults to 4.

    Raises:
        ValueError: A value that is not allowed.
    """
    type: str = DEFAULT_TYPE
    bits: Optional[int] = None
    group_size: int = 4

    def __post_init__(self):
        check(self.bits is None or is_int(self.bits) and 1 <= self.bits <= 8,
              'bits', self.bits, '1 to 8, or None for float')
        check(is_int(self.group_size) and (
            1 <= self.group_size <= MOST_FILTERS or self.group_size == -1),
            'group_size', self.group_size, 'a number of filters from 1 to '
            f'{MOST_FILTERS}, or -1 for the whole layer')

    def options(self) -> Dict[str, Any]:
        """Keyword arguments that the quantizer takes besides ``bits``,
        ``group_size`` and ``num_filters``."""
        return _options(self, 'group_size')

    def for_float_weights(self) -> 'WeightScheme':
        """The scheme to measure weights with that no training has adapted.

        Where the range of this one holds only weights that were trained for
        it, another of the same bits.
        """
        return self

    def num_levels(self) -> int:
        """Number of values that a quantized weight can have."""
        return 2**self.bits

    def describe(self) -> str:
        """What a checkpoint must agree with, in words."""
        return self.basics() + _words(self.options())

    def basics(self) -> str:
        """What all types have of that."""
        return (f'{self.type} {self.bits} bits, group size '
                f'{self.group_size}')


@dataclass(frozen=True)
class ActivationScheme:
    """How activations are quantized: what every type of quantizer takes.

    A type with options of its own has a subclass as its ``Scheme``.

    Args:
        type (str): Name in ``QUANTIZERS``. Defaults to 'ScaleClip'.
        bits (int, optional): 2 to 8. Defaults to None: activations stay
            float.
        site (str): 'input': at the input of each quantized layer; 'relu': at
            the output of each module of ReLU, one quantizer per call site,
            where layers that read none of these fall back to 'input' (those
            behind ``F.relu`` as well). Defaults to 'input'.

    Raises:
        ValueError: A value that is not allowed.
    """
    type: str = DEFAULT_TYPE
    bits: Optional[int] = None
    site: str = 'input'

    def __post_init__(self):
        check(self.bits is None or is_int(self.bits) and 2 <= self.bits <= 8,
              'bits', self.bits, '2 to 8, or None for float')
        check(self.site in ('input', 'relu'), 'site', self.site,
              "'input' or 'relu'")

    def options(self) -> Dict[str, Any]:
        """Keyword arguments that the quantizer takes besides ``bits`` and
        ``headroom``."""
        return _options(self, 'site')

    def describe(self) -> str:
        """What a checkpoint must agree with, in words."""
        return self.basics() + _words(self.options())

    def basics(self) -> str:
        """What all types have of that."""
        return f'{self.type} {self.bits} bits'


def _words(options: Dict[str, Any]) -> str:
    return ''.join(f', {name} {json.dumps(value, default=repr)}'
                   for name, value in options.items())


def _options(scheme, *common: str) -> Dict[str, Any]:
    return {field.name: getattr(scheme, field.name)
            for field in dataclasses.fields(scheme)
            if field.name not in ('type', 'bits', *common)}
