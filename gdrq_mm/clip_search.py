"""Best clip values of weights: exact search (Eq. 4 and 12).

Paper: "Low-bit Quantization Needs Good Distribution" (Yu et al.), Sections
3.2 and 3.4.

With step ``s = a / L`` the loss of a group is
``f(s) = sum |w - s * min(round(w / s), L)|`` over its ``w = |weight|``:
continuous and piecewise linear, with a convex kink at every ``s = w / m`` and
a concave one at every ``s = w / (m - 1/2)``, ``m = 1 .. L``. Its least value
lies at a convex kink, so the best ``a`` is one of the ``L * w / m``. It may
exceed ``max|w|``: a grid up to the largest weight would miss it.

In half steps ``s / 2`` the levels are even numbers, the bounds between two of
them odd ones, up to ``2 L``. Of a grid with an even number of levels it is the
other way round, up to ``2^bits - 1``; all else is the same.
"""
import math
from typing import Iterator, List, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from . import functional as F

MAX_LEVELS = 127  # of 8 bits; twice as much has to fit into 8 bits
# Kinks of many small groups that are held at a time, a quarter of those of a
# large one; what is held needs about 50 bytes each.
CHUNK = 2**18
GRID = 256  # points at which the loss of a large group is bounded


@torch.no_grad()
def search_clip(w: Tensor,
                bits: Optional[int] = None,
                group_size: int = -1,
                levels: Optional[int] = None,
                even: bool = False) -> Tensor:
    """Clip value of least quantized loss of every group (Eq. 4, 12), exact.

    The same loss as that of the best of all ``L * |w_i| / m``, at the cost of
    sorting ``2 L`` numbers a weight.

    Args:
        w (Tensor): Shape ``(num_filters, ...)``, any float dtype.
        bits (int, optional): 1 to 8. At 1 bit the result is ``mean|G|``, the
            level of the 1-bit rule ``sign(w) * mean|G|``, for which Eq. 2
            has no step. Give this or ``levels``.
        group_size (int): Filters per group, -1 for all. Defaults to -1.
        levels (int, optional): Steps ``L`` between zero and the clip value,
            1 to 127, where they are not the ``2^(bits-1) - 1`` of Eq. 2:
            the paper's Fig. 5 has 8 (17 levels in all) at 4 bits.
        even (bool): Search for a grid of ``2^bits`` levels, see
            :func:`gdrq_mm.functional.quantize_codes`; with ``bits``, 1 to 3.
            Defaults to False.

    Returns:
        Tensor: Shape ``(num_groups, )``, float32 (float64 for float64 input).
        0 for a group of zeros, NaN for one that is not finite.

    Raises:
        ValueError: Neither or both of ``bits`` and ``levels`` are given, or
            one is out of range.

    Examples:
        >>> w = torch.tensor([[0.9, -1.0, 1.1, 0.1], [0., 0., 0., 0.]])
        >>> search_clip(w, bits=2, group_size=1)
        tensor([1., 0.])
    """
    if (bits is None) == (levels is None):
        raise ValueError(f'bits is {bits} and levels is {levels}; give one')
    if levels is None:
        if not 1 <= bits <= 8:
            raise ValueError(f'bits is {bits}, allowed: 1 to 8')
        if even and bits > F.MAX_EVEN_BITS:
            raise ValueError(f'bits is {bits}, allowed with an even number of '
                             f'levels: 1 to {F.MAX_EVEN_BITS}')
        if bits == 1 and not even:
            return F.clip_threshold(w, 1., group_size)
        levels = F.num_levels(bits)
    elif even:
        raise ValueError(f'levels is {levels}, allowed with even: bits')
    if not (even or 1 <= levels <= MAX_LEVELS):
        raise ValueError(f'levels is {levels}, allowed: 1 to {MAX_LEVELS}')

    whole = len(w) - len(w) % max(group_size, 1)
    if even and group_size != -1 and 0 < whole < len(w):
        # The zeros that would fill up the last group are no levels.
        return torch.cat([
            search_clip(w[:whole], bits, group_size, even=True),
            search_clip(w[whole:], bits, even=True)])
    dtype = torch.promote_types(w.dtype, torch.float32)
    rows = _rows_of_groups(w.detach(), group_size)
    clip = rows.new_zeros(len(rows), dtype=dtype)
    if rows.numel() == 0:
        return clip
    top = 2**bits - 1 if even else 2 * levels  # level, in half steps
    kinks = top * rows.shape[1]
    search = _search_rows if kinks <= 4 * CHUNK else _search_large
    for start in range(0, len(rows), max(CHUNK // kinks, 1)):
        part = F.to_float64(rows[start:start + max(CHUNK // kinks, 1)].abs())
        # Relative to the largest weight: nothing overflows or underflows.
        largest = part.amax(1, keepdim=True)
        scaled = part / torch.where(largest > 0, largest, 1.)
        bad = ~torch.isfinite(largest[:, 0])
        best = search(torch.where(bad[:, None], 0., scaled), top)
        best = best * largest[:, 0] * ((top + even) / 2)
        best = best.clamp(max=torch.finfo(dtype).max)
        clip[start:start + len(part)] = torch.where(bad, torch.nan, best)
    return clip


def _rows_of_groups(w: Tensor, group_size: int) -> Tensor:
    """One row per group; a shorter last group is filled up with zeros, which
    cost nothing at any clip value."""
    if w.numel() == 0:
        return w.new_zeros(F.num_groups(w.shape[0], group_size), 0)
    if group_size == -1:
        return w.reshape(1, -1)
    group_size = min(group_size, w.shape[0])
    rows = w.reshape(w.shape[0], -1)
    groups = F.num_groups(w.shape[0], group_size)
    short = groups * group_size - len(rows)
    if short:
        rows = torch.nn.functional.pad(rows, (0, 0, 0, short))
    return rows.reshape(groups, -1)


def _search_rows(w: Tensor, top: int) -> Tensor:
    """Best step of every row: follow ``f`` from kink to kink.

    Args:
        w (Tensor): Magnitudes up to 1, shape ``(rows, n)``, float64.
        top (int): The largest level in half steps.

    Returns:
        Tensor: Shape ``(rows, )``, float64.
    """
    doubled = torch.arange(1, top + 1, device=w.device)
    kinks = _encode(w[:, :, None] * (2 / doubled.double()), doubled).flatten(1)
    steps, loss = _follow(kinks, w.new_tensor(-w.shape[1] * top / 2), top)
    return steps.gather(1, loss.argmin(1, keepdim=True))[:, 0]


def _encode(steps: Tensor, doubled: Tensor) -> Tensor:
    """Kinks and what they do in one int64, so that plain values are sorted.

    The kink at ``w / m`` changes the slope by ``+2m``, that at
    ``w / (m - 1/2)`` by ``-(2m - 1)``: the denominator, doubled, even or odd.
    It takes the lowest 8 of the 52 bits of the mantissa; positive floats sort
    as integers.
    """
    bits = steps.contiguous().view(torch.int64)
    return (bits & ~255).bitwise_or_(doubled)


def _follow(kinks: Tensor, slope: Tensor, top: int) -> Tuple[Tensor, Tensor]:
    """Kinks of every row in order, and ``f`` there, less ``f`` at the first.

    Args:
        kinks (Tensor): From :func:`_encode`, shape ``(rows, k)``.
        slope (Tensor): Slope of ``f`` before the first of a row, a scalar.
        top (int): The largest level in half steps: levels are even or odd
            as it is.
    """
    if kinks.device.type == 'cpu':
        # numpy's vectorized sort takes a sixth of the time of torch's.
        kinks = torch.from_numpy(np.sort(kinks.numpy(), axis=1))
    else:
        kinks = kinks.sort(dim=1).values
    changes = kinks & 255
    steps = (kinks & ~255).view(torch.float64)
    slopes = torch.where(changes % 2 == top % 2, changes, -changes).cumsum(
        1) + slope
    loss = (slopes[:, :-1] * steps.diff(dim=1)).cumsum(1)
    return steps, torch.nn.functional.pad(loss, (1, 0))


def _search_large(w: Tensor, top: int) -> Tensor:
    """Best step of one row with too many kinks to hold them all.

    ``f`` is computed at the points of a grid. It changes by at most
    ``sum m`` a step, which bounds it from below between them; kinks are
    followed only where it may be least.

    Args:
        w (Tensor): Magnitudes up to 1, shape ``(1, n)``, float64.
        top (int): The largest level in half steps.

    Returns:
        Tensor: Shape ``(1, )``, float64.
    """
    w = w[0].sort().values
    sums = torch.nn.functional.pad(w.cumsum(0), (1, 0))
    total = float(sums[-1])
    if total == 0:
        return w.new_zeros(1)
    doubled = torch.arange(1, top + 1, device=w.device)
    # Nothing is won where the first level is above the largest weight, or
    # the last one below the smallest; and f(s) >= total - s * n * L.
    loss = _loss_on_grid(w, sums, w.new_tensor([2 / top]), top)[0]
    low = max((total - float(loss)) / (len(w) * top / 2),
              2 / top * float(w[w > 0][0]) * (1 - 1e-9))
    high = (1 + top % 2) * (1 + 1e-9)
    pending = float('inf')
    while True:
        grid = torch.logspace(math.log2(low), math.log2(high), GRID, base=2,
                              dtype=w.dtype, device=w.device)
        grid[0], grid[-1] = low, high  # whatever rounding made of them
        loss, slope, steepest, places = _loss_on_grid(w, sums, grid, top)
        bound = (loss[:-1] + loss[1:] - steepest[:-1] * grid.diff()) / 2
        keep = (bound <= loss.min() + 1e-12 * total).nonzero()[:, 0]
        before, pending = pending, int(places.diff()[:, keep].sum())
        if pending <= 4 * CHUNK or pending > before / 2:
            break
        low, high = float(grid[keep[0]]), float(grid[keep[-1] + 1])
    best, least = w.new_zeros(()), float('inf')
    for first, last in _runs(keep.tolist(), places.diff().sum(0).tolist()):
        slices = places[:, [first, last]].tolist()
        kinks = torch.cat([
            _encode(w[begin:end] * (2 / number.double()), number)
            for number, (begin, end) in zip(doubled, slices)])
        if len(kinks):
            steps, change = _follow(kinks[None], slope[first], top)
            change += loss[first] + slope[first] * (steps[0, 0] - grid[first])
            if change.min() < least:
                least, best = change.min(), steps[0, change.argmin()]
    return best[None]


def _runs(keep: List[int], counts: List[int]) -> Iterator[Tuple[int, int]]:
    """Neighbours among the intervals ``keep``, as many as can be held.

    Args:
        keep (list[int]): Interval ``i`` lies between points ``i``, ``i + 1``.
        counts (list[int]): Kinks of every interval.

    Yields:
        tuple[int, int]: The first and the last point of a run.
    """
    first, held = keep[0], 0
    for index, following in zip(keep, [*keep[1:], None]):
        held += counts[index]
        if following != index + 1 or held + counts[following] > 4 * CHUNK:
            yield first, index + 1
            first, held = following, 0


def _loss_on_grid(w: Tensor, sums: Tensor, grid: Tensor, top: int
                  ) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """``f`` and its slope at the steps of a grid.

    Args:
        w (Tensor): Sorted magnitudes, shape ``(n, )``.
        sums (Tensor): Sums of the first 0, 1, ... n of them.
        grid (Tensor): Shape ``(k, )``.
        top (int): The largest level in half steps.

    Returns:
        tuple: ``f``, its slope to the right, and the steepest that it can be
        from there on, all of shape ``(k, )``; how many weights lie below
        1, 2, ... ``top`` half steps, shape ``(top, k)``.
    """
    doubled = torch.arange(1, top + 1, device=w.device)[:, None]
    places = torch.searchsorted(w, grid * doubled / 2)
    numbers = torch.cat([torch.zeros_like(places[:1]), places,
                         torch.full_like(places[:1], len(w))])
    # Between two half steps the nearest level is the lower or the upper one.
    lower = torch.arange(top + 1, device=w.device)[:, None]
    is_below = lower % 2 == top % 2
    level = torch.where(is_below, lower, lower + 1) / 2
    sign = torch.where(is_below, 1., -1.).to(w.dtype)
    counts, amounts = numbers.diff(dim=0), sums[numbers].diff(dim=0)
    slope = -(sign * level * counts).sum(0)
    loss = (sign * amounts).sum(0) + grid * slope
    return loss, slope, (level * counts).sum(0), places
