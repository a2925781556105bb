"""Grids of least squared error for a sample of values."""
from typing import Tuple

import torch
from torch import Tensor

from ..functional import to_float64

SAMPLES = 2**12  # values of a tensor that are looked at
# Where that is done in training: so many for every code, as fine grids ask
# for the tails, and so many at least.
FEW_PER_CODE, FEW = 2**6, 2**12
FEW_CANDIDATES = 25
# Of the values that are not zero, the greatest thousandth (one at least, of so
# many) are outliers beyond so many times the mean of the others. The greatest
# of 4096 of a normal distribution is 5.5 times it, of a Laplace one 9 times.
ENOUGH, OUTLIER = 32, 11.
CANDIDATES = 41  # steps, each 2^(1/4) times the next
REFINEMENTS = 3
# Codes of zero that are tried, counted from either end.
ZERO_POINTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def sample(x: Tensor, channels: bool = False) -> Tensor:
    """Evenly chosen values of an activation.

    Where channels are not kept apart, outliers count as the greatest of the
    other values: a range that starts from one batch would stay where a single
    value of it put it.

    Args:
        x (Tensor): Shape ``(N, C, H, W)`` or ``(..., C)``.
        channels (bool): Keep channels apart. Defaults to False.

    Returns:
        Tensor: float64, shape ``(channels, values)``; one row where they are
        not kept apart.
    """
    rows = x.detach()
    rows = rows.movedim(1 if x.dim() == 4 else -1, 0).flatten(1) \
        if channels else rows.reshape(1, -1)
    stride = min(max(1, rows.numel() // SAMPLES), max(rows.shape[1], 1))
    rows = to_float64(rows[:, ::stride])
    return rows if channels else _without_outliers(rows)


def _without_outliers(values: Tensor) -> Tensor:
    sizes = values[values != 0].abs().sort()[0]
    if len(sizes) < ENOUGH or not sizes[-1].isfinite():
        return values
    others = sizes[:-max(1, len(sizes) // 1000)]
    limit = (OUTLIER * others.mean()).maximum(others[-1])
    return torch.where(values.abs() > limit, others[-1].copysign(values),
                       values)


def balance(values: Tensor) -> Tuple[Tensor, Tensor]:
    """Give every channel the same energy, so that all count alike.

    Args:
        values (Tensor): Shape ``(channels, values)``.

    Returns:
        tuple[Tensor, Tensor]: The channels that are not zero, and the weight
        of each, ``1 / sum x^2``, of shape ``(channels, 1)``.
    """
    energy = values.square().sum(1, keepdim=True)
    kept = energy.flatten() > 0
    return values[kept], 1 / energy[kept]


def fitted_step(values: Tensor, weights: Tensor, codes: Tensor) -> Tensor:
    """The step of least weighted squared error for given codes; 0 if all of
    them are zero."""
    squares = (codes.square() * weights).sum()
    products = (values * codes * weights).sum()
    return torch.where(squares > 0, products / squares.clamp(min=1e-300), 0.)


def least_squares_step(values: Tensor, low: int, high: int) -> Tensor:
    """The step ``s`` of least error of ``s * clamp(round(x / s), low, high)``.

    Of several channels the error is the sum over channels of the squared
    error over the energy: all of them count alike.

    Args:
        values (Tensor): float64, shape ``(channels, values)``.
        low (int): The least code, at most 0.
        high (int): The greatest code, at least 0.

    Returns:
        Tensor: float64 scalar; 0 where no value lies on a side that has
        codes.

    Examples:
        >>> values = torch.tensor([[0., 1., 2., 3.]]).double()
        >>> float(least_squares_step(values, 0, 3))
        1.0
    """
    values, weights = balance(values)
    zero = values.new_zeros(())
    if not values.numel():
        return zero
    reach = max(zero, *([values.amax() / high] if high else []),
                *([values.amin() / low] if low else []))
    if not 0 < reach < float('inf'):
        return zero

    def codes_of(step: Tensor) -> Tensor:
        return (values / step).round().clamp(low, high)

    def error_of(step: Tensor) -> Tensor:
        return ((codes_of(step) * step - values).square() * weights).sum()

    steps = reach * 2.**(-torch.arange(CANDIDATES, device=values.device) / 4)
    best = steps[int(torch.stack([error_of(each) for each in steps]).argmin())]
    for _ in range(REFINEMENTS):
        best = fitted_step(values, weights, codes_of(best))
    return best


def least_squares_grid(values: Tensor, high: int) -> Tuple[Tensor, int]:
    """Step and zero point of least squared error for codes ``0 .. high``.

    Args:
        values (Tensor): float64, shape ``(1, values)``.
        high (int): The greatest code.

    Returns:
        tuple[Tensor, int]: The step, 0 where all values are; the code of
        zero.
    """
    best, step, zero_point = float('inf'), values.new_zeros(()), 0
    for zero in sorted({zero for code in ZERO_POINTS if code <= high
                        for zero in (code, high - code)}):
        each = least_squares_step(values, -zero, high - zero)
        codes = (values / each.clamp(min=1e-300)).round().clamp(
            -zero, high - zero)
        error = float((codes * each - values).square().sum())
        if each > 0 and error < best:
            best, step, zero_point = error, each, zero
    return step, zero_point


def few(x: Tensor, bits: int) -> Tensor:
    """Some values of an activation, in float32, shape ``(values, )``."""
    values = x.detach().reshape(-1)
    number = max(FEW, FEW_PER_CODE * 2**bits)
    # An odd stride visits every column of an image of even width.
    return values[::max(1, values.numel() // number) | 1].float()


def quick_grid(values: Tensor, low: Tensor, high: Tensor
               ) -> Tuple[Tensor, Tensor]:
    """Step and codes of least squared error, for every training step.

    Of steps that are each 2^(1/4) times the next, and the minimum of the
    parabola through the best one and its neighbours. The device is not
    waited for.

    Args:
        values (Tensor): float32, shape ``(values, )``.
        low (Tensor): Least codes, at most 0, shape ``(ranges, )``.
        high (Tensor): Greatest codes, at least 0, of the same shape.

    Returns:
        tuple[Tensor, Tensor]: The step, a scalar, 0 where no value lies on a
        side that has codes, not finite where a value is not; which of the
        ranges, of shape ``(1, )``.

    Examples:
        >>> values = torch.linspace(0, 1, 1000)
        >>> step, _ = quick_grid(values, torch.zeros(1), torch.tensor([15.]))
        >>> bool((step - 1 / 15).abs() < .003)
        True
    """
    low, high = low.to(values), high.to(values)
    ends = torch.stack([values.amax() / high, values.amin() / low])
    # 0 / 0 and x / 0: a side without codes.
    reach = torch.where(torch.stack([high, low]) == 0, 0., ends).amax(0)
    exponents = torch.arange(FEW_CANDIDATES, device=values.device) / 4
    steps = reach[:, None] * 2.**-exponents
    ratio = values / steps[:, :, None]
    rounded = ratio.round().clamp_(low[:, None, None], high[:, None, None])
    errors = rounded.sub_(ratio).square_().mean(2) * steps.square()
    best, index = errors.min(1, keepdim=True)
    middle = index.clamp(1, FEW_CANDIDATES - 2)
    left, here, right = errors.gather(
        1, torch.cat([middle - 1, middle, middle + 1], 1)).T
    curve = left - 2 * here + right
    shift = torch.where(curve > 0, (left - right) / (2 * curve.clamp(
        min=torch.finfo(curve.dtype).tiny)), 0.).clamp(-.5, .5)
    shift = torch.where(middle == index, shift[:, None], 0.)
    step = torch.where(
        reach[:, None] > 0,
        reach[:, None] * 2.**(-(index + shift) / 4), reach[:, None])
    row = torch.where(reach[:, None] > 0, best, float('inf')).argmin(0)
    return step[row].squeeze(), row
