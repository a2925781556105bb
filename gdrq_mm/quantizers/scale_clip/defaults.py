"""Default factors of Scale-Clip thresholds."""
from typing import Any

from ... import functional as F
from ...errors import check
from ..schemes import is_number

# Clip value over mean|x| with the least squared error for a half-normal
# distribution, by the number of levels above zero.
BEST_CLIP_OF_HALF_NORMAL = {
    1: 1.55, 3: 2.45, 7: 3.1, 15: 3.65, 31: 4.1, 63: 4.5, 127: 4.9, 255: 5.25}


def default_weight_k(bits: int) -> float:
    """Default ``k`` of weights: the paper's 2 up to 3 bits.

    From 4 bits on the levels reach further, and at 2 the reshaped weights
    lose more than they win (docs/results.md, "k of weights").
    """
    return 2. if bits <= 3 else 3.


def default_k(bits: int, signed: bool, of_nonzero: bool = False) -> float:
    """Default ``k_a`` of activations (the paper only says "large").

    Unsigned inputs are ReLU outputs: about half of them are zeros, which
    halves the mean, hence the factor 2. A mean of the values that are not
    zero needs none; tails are a little longer than those of a half-normal
    distribution, hence its 1.1.
    """
    best = BEST_CLIP_OF_HALF_NORMAL[F.num_levels(bits, signed)]
    if of_nonzero:
        return 1.1 * best
    return best if signed else 2 * best


def check_k(k: Any) -> None:
    """Raise on a threshold factor that is none."""
    check(k is None or is_number(k) and 1e-3 <= k <= 1e3, 'k', k,
          'a positive number from 0.001 to 1000, or None for the default of '
          'the bits')
