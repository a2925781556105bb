"""Whether values lie on a grid of few bits, seen from the values alone."""
from torch import Tensor

from ..functional import to_float64

SAMPLE = 64  # values that are looked at before all are
TOLERANCE = 1e-3  # of a step, for the rounding of float32


def has_low_bit_filters(weight: Tensor, bits: int) -> bool:
    """Whether the filters of an operand lie on a grid each: slices along one
    of its dimensions, as the operator turned it."""
    if weight.dim() == 1:
        return is_evenly_spaced(weight[None], bits)
    rows = weight.flatten(1) if weight.dim() != 3 else weight.flatten(0, 1)
    turned = weight.transpose(-1, -2) if weight.dim() <= 3 else \
        weight.transpose(0, 1)
    columns = turned.flatten(1) if weight.dim() != 3 else \
        turned.flatten(0, 1)
    return is_evenly_spaced(rows, bits) or is_evenly_spaced(columns, bits)


def is_evenly_spaced(rows: Tensor, bits: int) -> bool:
    """Whether the values of every row are evenly spaced, ``2^bits`` at most.

    Args:
        rows (Tensor): Shape ``(num_rows, num_values)``.
        bits (int): 1 to 8.

    Examples:
        >>> import torch
        >>> is_evenly_spaced(torch.tensor([[-.3, 0., .6, .3]]), bits=2)
        True
        >>> is_evenly_spaced(torch.tensor([[-.3, 0., .6, .4]]), bits=2)
        False
    """
    if rows.numel() == 0 or not rows.is_floating_point():
        return True
    rows = to_float64(rows.detach())
    low, span = rows.amin(1, keepdim=True), \
        rows.amax(1, keepdim=True) - rows.amin(1, keepdim=True)
    left = (span > 0).flatten()
    # Strides over the row: neighbours are often equal, paddings for one.
    every = max(rows.shape[1] // SAMPLE, 1)
    for steps in range(1, 2**bits):
        if not left.any():
            return True
        index = left.nonzero().flatten()
        for values in (rows[:, ::every], rows):
            index = index[_fits(values[index], low[index], span[index],
                                steps)]
            if not len(index):
                break
        left[index] = False
    return not left.any()


def _fits(values: Tensor, low: Tensor, span: Tensor, steps: int) -> Tensor:
    codes = (values - low) * (steps / span)
    return ((codes - codes.round()).abs() < TOLERANCE).all(1)
