"""The grid that activation quantizers show to merge and export."""
from typing import NamedTuple


class CodeRange(NamedTuple):
    """The grid of a uniform activation quantizer, for export.

    A code ``c`` stands for ``(c - zero_point) * scale``.

    Args:
        scale (float): Step between codes, a float32 value.
        low (int): The least code.
        high (int): The greatest code.
        zero_point (int): The code of zero. Defaults to 0.
    """
    scale: float
    low: int
    high: int
    zero_point: int = 0
