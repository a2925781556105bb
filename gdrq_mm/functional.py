"""Pure tensor functions of GDRQ: thresholds, clipping, linear quantization.

Paper: "Low-bit Quantization Needs Good Distribution" (Yu et al.), equation
numbers below are its own. A *filter* is one slice ``x[i]`` of a weight; a
*group* is ``group_size`` consecutive filters, the last one shorter where the
number of filters is no multiple of it.
"""
from typing import Tuple

import torch
from torch import Tensor

WITHOUT_FLOAT64 = 'mps',  # types of devices: GPUs of Apple
MAX_EVEN_BITS = 3  # from 4 bits on one level more makes no difference


def num_levels(bits: int, signed: bool = True) -> int:
    """Number of steps ``L`` between zero and the clip value (Eq. 2).

    Signed codes are ``-L .. L`` with ``L = 2^(bits-1) - 1``, unsigned ones
    ``0 .. L`` with ``L = 2^bits - 1``.
    """
    return 2**(bits - 1) - 1 if signed else 2**bits - 1


def num_groups(num_filters: int, group_size: int) -> int:
    """Number of groups; ``group_size=-1`` is one group for the whole layer.

    Raises:
        ValueError: It is neither -1 nor positive.
    """
    if group_size < 1 and group_size != -1:
        raise ValueError(f'group_size is {group_size}, allowed: 1 or more, or '
                         '-1 for the whole layer')
    if group_size == -1:
        return min(num_filters, 1)
    return -(-num_filters // group_size)


def expand_clip(clip: Tensor, x: Tensor, group_size: int) -> Tensor:
    """Repeat one clip value per group to one per filter, ready to broadcast.

    Args:
        clip (Tensor): Shape ``(num_groups, )``.
        x (Tensor): The weight, shape ``(num_filters, ...)``.
        group_size (int): Filters per group, -1 for the whole layer.

    Returns:
        Tensor: Shape ``(num_filters, 1, ...)``.

    Examples:
        >>> clip = torch.tensor([1., 2.])
        >>> expand_clip(clip, torch.zeros(3, 5), group_size=2).flatten()
        tensor([1., 1., 2.])
    """
    filters = x.shape[0]
    if group_size != -1:
        clip = clip.repeat_interleave(min(group_size, filters))[:filters]
    return clip.expand(filters).view(-1, *(1, ) * (x.dim() - 1))


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def to_float64(x: Tensor) -> Tensor:
    """``x`` in float64, on the CPU where its device has none."""
    device = 'cpu' if x.device.type in WITHOUT_FLOAT64 else x.device
    return x.to(device).double()


def divide(x: Tensor, number: float) -> Tensor:
    """``x / number``, rounded alike on every device.

    By a Python number, a GPU multiplies with its reciprocal, which can be off
    by a bit: a model would have other scales where it is trained than where
    it is exported.
    """
    return x / torch.full((), number, dtype=x.dtype, device=x.device)


def shifted_range(clip: Tensor, zero: Tensor, bits: int
                  ) -> Tuple[Tensor, Tensor, Tensor]:
    """The range of unsigned codes with a zero point.

    Args:
        clip (Tensor): Width of the range, a scalar.
        zero (Tensor): Code of zero, an integer from 0 to ``2^bits - 1``, a
            scalar.
        bits (int): 2 to 8.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Step; least and greatest code, counted
        from that of zero.
    """
    levels = 2**bits - 1
    step = divide(clip, levels).clamp(min=torch.finfo(torch.float32).tiny)
    return step, -zero, levels - zero


def mean_abs(x: Tensor, group_size: int = -1) -> Tensor:
    """Mean absolute value of every group of filters, in float32.

    Args:
        x (Tensor): Shape ``(num_filters, ...)``, any float dtype.
        group_size (int): Filters per group, -1 for all. Defaults to -1.

    Returns:
        Tensor: Shape ``(num_groups, )``, float32 (float64 for float64 input);
        0 for a group without elements.
    """
    groups = num_groups(x.shape[0], group_size)
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.numel() == 0:
        return x.new_zeros(groups, dtype=dtype)
    if group_size == -1 or group_size >= x.shape[0]:
        return x.abs().mean(dtype=dtype).view(1)
    rows = x.reshape(x.shape[0], -1).abs().mean(dim=1, dtype=dtype)
    short = groups * group_size - rows.numel()
    sums = torch.nn.functional.pad(rows, (0, short)).view(groups, -1).sum(1)
    counts = torch.full_like(sums, group_size)
    counts[-1] -= short
    return sums / counts


def clip_threshold(x: Tensor, k: float, group_size: int = -1) -> Tensor:
    """Scale-Clip threshold ``T = k * mean|x|`` of every group (Eq. 7, 8).

    Uniform data have ``max|x| = 2 * mean|x|``, so ``k = 2`` reshapes towards
    the uniform distribution. The threshold carries no gradient.

    Args:
        x (Tensor): Shape ``(num_filters, ...)``.
        k (float): The factor, > 0.
        group_size (int): Filters per group, -1 for all. Defaults to -1.

    Returns:
        Tensor: Shape ``(num_groups, )``, at least float32. Where the sum of
        a group overflows, the largest finite value: nothing is clipped.
    """
    clip = k * mean_abs(x.detach(), group_size)
    return clip.clamp_(max=torch.finfo(clip.dtype).max)


def scale_clip(x: Tensor, clip: Tensor, group_size: int = -1) -> Tensor:
    """Clip every group of ``x`` to ``[-clip, clip]`` (Eq. 9).

    Args:
        x (Tensor): Shape ``(num_filters, ...)``.
        clip (Tensor): Shape ``(num_groups, )``.
        group_size (int): Filters per group, -1 for all. Defaults to -1.
    """
    bound = expand_clip(clip, x, group_size).to(x.dtype)
    return torch.clamp(x, -bound, bound)


def quantize_codes(x: Tensor,
                   clip: Tensor,
                   bits: int,
                   signed: bool = True,
                   even: bool = False) -> Tuple[Tensor, Tensor]:
    """Integer codes and scale of linear quantization (Eq. 1, 2).

    With ``even`` there are ``2^bits`` levels, none of them zero (mid-rise):
    of the step ``s = 2 clip / 2^bits`` they are the odd multiples of ``s / 2``
    below ``clip``. The paper's 1-bit rule is one of these grids, that of
    ``clip = 2 mean|x|``.

    Args:
        x (Tensor): Any shape, any float dtype.
        clip (Tensor): Clip values >= 0, broadcastable to ``x``.
        bits (int): 1 to 8; 1 only with ``signed``: codes are then -1 and 1
            (``sign(0) = +1``) and the scale is ``clip`` itself.
        signed (bool): Codes ``-L..L`` or ``0..L``. Defaults to True.
        even (bool): Odd codes ``1 - 2^bits .. 2^bits - 1`` with the scale
            ``s / 2``; 1 to 3 bits, signed. Defaults to False.

    Returns:
        tuple[Tensor, Tensor]: Codes (float32 holding integers; float64 where
        ``x`` is) and scale, with ``x ~ codes * scale``. Where ``clip`` is 0
        the codes are 0 (1 bit and even: -1 or 1) and so is the scale.

    Raises:
        ValueError: These bits are not allowed, or not with ``even``.
    """
    codes, scale, _ = _codes_of(x, clip, bits, signed, even)
    return codes, scale


def _codes_of(x: Tensor, clip: Tensor, bits: int, signed: bool, even: bool):
    """Codes, scale, and where ``x`` lies inside the range (None: all)."""
    if not (1 if signed else 2) <= bits <= 8:
        raise ValueError(f'bits is {bits}, allowed: 1 to 8, and 2 to 8 for '
                         'unsigned codes')
    if even and not (signed and bits <= MAX_EVEN_BITS):
        raise ValueError(f'bits is {bits}, allowed with an even number of '
                         f'levels: 1 to {MAX_EVEN_BITS}, signed')
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, clip = x.to(dtype), clip.to(dtype)
    if even:
        return _even_codes_of(x, clip, bits)
    if bits == 1:
        return torch.where(x < 0, -1., 1.).to(dtype), clip, None
    # Not so large that the largest code times the scale overflows.
    levels, finfo = num_levels(bits, signed), torch.finfo(dtype)
    scale = divide(clip, levels).clamp(
        max=finfo.max / levels * (1 - finfo.eps))
    codes = torch.clamp(x, -clip if signed else torch.zeros_like(clip), clip)
    inside = codes == x
    # A scale of 0, or one so small that it lost its precision, divides by 1:
    # the codes come out as 0. In place: fresh memory costs more than maths.
    codes.div_(torch.where(scale >= finfo.tiny, scale, 1.)).round_()
    return codes, scale, inside


def _even_codes_of(x: Tensor, clip: Tensor, bits: int):
    """:func:`_codes_of` for ``2^bits`` levels."""
    half = 2**(bits - 1)
    codes = torch.clamp(x, -clip, clip)
    inside = codes == x
    step = clip / half
    codes.div_(torch.where(step >= torch.finfo(x.dtype).tiny, step, 1.))
    # The upper bound belongs to the last interval.
    codes.floor_().clamp_(max=half - 1)
    return codes.mul_(2).add_(1), step / 2, inside


class _LinearQuantize(torch.autograd.Function):
    """Round to the grid; straight-through gradient inside the range."""

    @staticmethod
    def forward(ctx, x, clip, bits, signed, even):
        codes, scale, inside = _codes_of(x, clip, bits, signed, even)
        ctx.save_for_backward(inside)
        return codes.mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        inside, = ctx.saved_tensors
        if inside is not None:
            grad = torch.where(inside, grad, 0.)
        return grad, None, None, None, None


def linear_quantize(x: Tensor,
                    clip: Tensor,
                    bits: int,
                    signed: bool = True,
                    even: bool = False) -> Tensor:
    """Linear quantization ``Q(x; clip)`` (Eq. 1, 2) as float values.

    Computed in float32 at least, and returned in the dtype of ``x``. The
    gradient is straight-through: 1 where ``x`` lies inside the range, bounds
    included, 0 outside; at 1 bit it is 1 everywhere. ``clip`` gets no
    gradient.

    Args:
        x (Tensor): Any shape.
        clip (Tensor): Clip values >= 0, broadcastable to ``x``; see
            :func:`expand_clip` for groups.
        bits (int): 1 to 8, unsigned 2 to 8.
        signed (bool): Range ``[-clip, clip]`` or ``[0, clip]``. Defaults to
            True.
        even (bool): ``2^bits`` levels, see :func:`quantize_codes`. Defaults
            to False.

    Examples:
        >>> x = torch.tensor([-3., 0.2, 0.4, 1.])
        >>> linear_quantize(x, torch.tensor(1.), bits=2)
        tensor([-1.,  0.,  0.,  1.])
        >>> linear_quantize(x, torch.tensor(1.), bits=2, even=True)
        tensor([-0.7500,  0.2500,  0.2500,  0.7500])
    """
    return _LinearQuantize.apply(x, clip, bits, signed, even)


def quantized_loss(w: Tensor, w_q: Tensor) -> Tensor:
    """Relative L1 error ``sum|w - w_q| / sum|w|`` (Eq. 3), a float32 scalar.

    0 for an all-zero ``w`` that is quantized to zeros.
    """
    ours, theirs = to_float64(w.detach()), to_float64(w_q.detach())
    error, norm = (ours - theirs).abs().sum(), ours.abs().sum()
    return torch.where(error == 0, 0., error / norm).float().to(w.device)
