"""Weight codes in bytes, several in each."""
from typing import Tuple

import numpy as np

from ..functional import num_levels


def pack_codes(codes: np.ndarray, bits: int) -> Tuple[np.ndarray, np.ndarray]:
    """Weight codes as digits of bytes, and what every byte stands for.

    Codes ``-L .. L`` are digits to the base ``2 L + 1``: five ternary codes
    (2 bits) a byte, or two of 4 bits. Other codes have the base that they
    need: that of an even number of levels, all odd, is 4 at 2 bits.

    Args:
        codes (ndarray): int8, any shape.
        bits (int): 1 to 8.

    Returns:
        tuple[ndarray, ndarray]: uint8 of shape ``(ceil(codes / digits), )``;
        int8 table of shape ``(bytes there are, digits)``.

    Examples:
        >>> packed, table = pack_codes(np.array([1, 0, -1], np.int8), bits=2)
        >>> table[packed].ravel()[:3]
        array([ 1,  0, -1], dtype=int8)
    """
    codes = codes.ravel().astype(np.int64)
    top, step = num_levels(bits), 1
    low, high = min(-top, codes.min()), max(top, codes.max())
    if high > top and (codes % 2).all():
        low, high, step = 1 - 2**bits, 2**bits - 1, 2
    # One bit of zeros, as of channels whose norm weighs nothing, has one.
    base, digits = max((high - low) // step + 1, 2), 1
    while base**(digits + 1) <= 256:
        digits += 1
    powers = base**np.arange(digits)
    flat = (codes - low) // step
    rows = np.pad(flat, (0, -flat.size % digits)).reshape(-1, digits)
    table = np.arange(base**digits)[:, None] // powers % base * step + low
    return (rows * powers).sum(1).astype(np.uint8), table.astype(np.int8)
