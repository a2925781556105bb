"""How many bytes a quantized weight takes in a published file."""
import math
from typing import Sequence

from torch import Tensor

from ..config import WeightScheme
from ..quantizers import QUANTIZERS, WeightQuantizer


def packed_bytes(shape: Sequence[int], scheme: WeightScheme) -> int:
    """Bytes of a packed weight: its codes, of which every filter begins with
    a byte of its own, and what its quantizer stores beside them.

    Args:
        shape (sequence of int): Shape of the weight.
        scheme (WeightScheme): How it is quantized.

    Examples:
        >>> # Of LSQ a step size is two numbers.
        >>> packed_bytes((8, 3, 3, 3), WeightScheme(type='LSQ', bits=4))
        128
    """
    filters, *others = shape
    quantizer = QUANTIZERS[scheme.type].weight.build(scheme,
                                                     num_filters=filters)
    stored = sum(value.numel() * value.element_size()
                 for value in quantizer.state_dict().values()
                 if isinstance(value, Tensor))
    return filters * -(-math.prod(others) * scheme.bits // 8) + stored


def has_codes(scheme: WeightScheme) -> bool:
    """Whether weights of a type are integer codes times a scale.

    Args:
        scheme (WeightScheme): How they are quantized.
    """
    kind = QUANTIZERS[scheme.type].weight
    return kind.codes is not WeightQuantizer.codes
