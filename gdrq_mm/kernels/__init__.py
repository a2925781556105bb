"""The element-wise work of training, fused where a compiler is at hand.

Three implementations with equal results: :mod:`.cpu` (C, for float32 on the
CPU), :mod:`.cuda` (Triton, for GPUs) and :mod:`.eager` for all else. Before a
fused one is used, it must build and agree with the eager one;
``GDRQ_MM_KERNELS=eager`` in the environment asks for no other.
"""
import functools
import importlib
import os
from types import ModuleType
from typing import Callable, Iterator, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from . import eager

VARIABLE = 'GDRQ_MM_KERNELS'


@functools.lru_cache(None)
def status(device_type: str) -> Tuple[str, str]:
    """Which implementation runs on a type of device, and why.

    Args:
        device_type (str): 'cpu', 'cuda', ...

    Returns:
        tuple[str, str]: 'cpu', 'cuda' or 'eager', and a few words for the
        log.

    Raises:
        ValueError: ``GDRQ_MM_KERNELS`` is neither 'auto' nor 'eager'.
    """
    asked = os.environ.get(VARIABLE, 'auto')
    if asked not in ('auto', 'eager'):
        raise ValueError(f'{VARIABLE} is {asked!r}, allowed: auto, eager')
    if asked == 'eager':
        return 'eager', f'{VARIABLE}=eager'
    if device_type not in ('cpu', 'cuda'):
        return 'eager', f'there are no fused kernels for {device_type}'
    try:
        _check(_module(device_type), torch.device(device_type))
    except Exception as error:  # whatever a compiler comes up with
        return 'eager', f'no fused kernels: {error}'.splitlines()[0]
    return device_type, 'fused kernels'


@functools.lru_cache(None)
def _module(kind: str) -> ModuleType:
    # Not all at once: Triton takes long to import, and need not be there.
    return importlib.import_module(f'{__name__}.{kind}')


def _check(fused: ModuleType, device: torch.device) -> None:
    """All fused kernels must agree with plain PyTorch, here and now.

    Raises:
        RuntimeError: One does not, with its name.
    """
    for name, call in _calls_to_compare(device):
        seen = torch.zeros(2, 3, dtype=torch.float32, device=device)
        ours, plain = call(fused, seen[0]), call(eager, seen[1])
        # Sums are added up in another order.
        rtol = 1e-5 if name == 'project_' else 0
        differing = int((~torch.isclose(ours, plain, rtol, 0)).sum())
        if differing or not torch.allclose(seen[0], seen[1], rtol=1e-4):
            raise RuntimeError(
                f'{name} does not agree with plain PyTorch in {differing} of '
                f'{plain.numel()} values')


def _calls_to_compare(device: torch.device
                      ) -> Iterator[Tuple[str, Callable]]:
    """Every kernel: its name and ``call(implementation, seen) -> Tensor``."""
    # On the bounds, inside and outside; more values (of a row, too) than the C
    # kernels take at once, and a last group that is shorter than the others.
    # They read by address: whatever the default dtype, all is float32.
    where = dict(dtype=torch.float32, device=device)
    x, weight = (torch.linspace(-2, 2, number, **where)
                 for number in (7 * 1439, 3 * 8209))
    for each in (x, weight):
        each[::5], each[1::5] = 1.3, 0
    scalar, weight = torch.tensor(1.3, **where), weight.view(3, -1)
    clips = torch.linspace(.2, 1.3, 2, **where)
    for value, clip, size in ((x, scalar, -1), (weight, clips, 2)):
        for signed in (True, False):
            yield 'quantize', lambda kind, seen: kind.quantize(
                value, clip, 4, signed, size, seen, None)
            yield 'quantize', lambda kind, seen: kind.quantize(
                value, clip, 4, signed, size, None, None)
            yield 'mask_outside', lambda kind, seen: kind.mask_outside(
                value + 3, value, clip, signed, size)
    yield 'quantize_even', lambda kind, seen: kind.quantize_even(
        weight, clips, 2, 2, None)
    # A step of 1/8: bounds, and values halfway between levels.
    grid = torch.tensor(15 / 8, **where), torch.tensor(5., **where), 4
    sixteenths = (16 * x).round() / 16
    yield 'quantize_shifted', lambda kind, seen: kind.quantize_shifted(
        sixteenths, *grid, None)
    yield 'mask_outside_shifted', lambda kind, seen: \
        kind.mask_outside_shifted(x + 3, sixteenths, *grid)
    for inplace in (False, True):
        yield 'quantize_relu', lambda kind, seen: torch.stack(
            kind.quantize_relu(x.clone(), scalar, 4, seen, inplace))

    def project(kind, seen):
        clip, projected = torch.zeros_like(clips), weight.clone()
        kind.project_(projected, clip, 1.5, 2)
        return torch.cat([projected.flatten(), clip])

    yield 'project_', project


def _for(x: Tensor, clip: Tensor, other: Optional[Tensor] = None
         ) -> ModuleType:
    """The implementation for these tensors."""
    kind = status(x.device.type)[0]
    if kind == 'eager':
        return eager
    module = _module(kind)
    return module if module.takes(x, clip, other) else eager


def quantize(x: Tensor, clip: Tensor, bits: int, signed: bool = True,
             group_size: int = -1, seen: Optional[Tensor] = None,
             slot: Optional[str] = None) -> Tensor:
    """Linear quantization (Eq. 1, 2) without a gradient.

    Args:
        x (Tensor): Any shape and float dtype.
        clip (Tensor): Clip value, a scalar; for weights one per group, shape
            ``(num_groups, )``.
        bits (int): 1 to 8, unsigned 2 to 8.
        signed (bool): Range ``[-clip, clip]`` or ``[0, clip]``.
        group_size (int): Filters per group, -1 for all.
        seen (Tensor, optional): ``sum|x|``, the number of values and that of
            non-zero ones are added to its first three elements.
        slot (str, optional): The result is needed only until the next call
            with the same slot, so it may lie in memory that is used again.

    Returns:
        Tensor: Like ``x``.
    """
    module = eager if bits == 1 else _for(x, clip)
    return module.quantize(x, clip, bits, signed, group_size, seen, slot)


def quantize_even(x: Tensor, clip: Tensor, bits: int, group_size: int = -1,
                  slot: Optional[str] = None) -> Tensor:
    """:func:`quantize` to ``2^bits`` levels, none of them zero.

    Args:
        x (Tensor): The weight, of any float dtype.
        clip (Tensor): One clip value per group, shape ``(num_groups, )``.
        bits (int): 1 to 3.
        group_size (int): Filters per group, -1 for all.
        slot (str, optional): As for :func:`quantize`.

    Returns:
        Tensor: Like ``x``.
    """
    return _for(x, clip).quantize_even(x, clip, bits, group_size, slot)


def quantize_shifted(x: Tensor, clip: Tensor, zero: Tensor, bits: int,
                     slot: Optional[str] = None) -> Tensor:
    """:func:`quantize` to unsigned codes with a zero point.

    Args:
        x (Tensor): Any shape and float dtype.
        clip (Tensor): Width of the range, a scalar.
        zero (Tensor): Code of zero, an integer in a float scalar.
        bits (int): 2 to 8.
        slot (str, optional): As for :func:`quantize`.

    Returns:
        Tensor: Like ``x``.
    """
    return _for(x, clip).quantize_shifted(x, clip, zero, bits, slot)


def quantize_relu(x: Tensor, clip: Tensor, bits: int,
                  seen: Optional[Tensor] = None,
                  inplace: bool = False) -> Tuple[Tensor, Tensor]:
    """ReLU and unsigned quantization.

    Args:
        x (Tensor): Any shape and float dtype.
        clip (Tensor): Clip value, a scalar.
        bits (int): 2 to 8.
        seen (Tensor, optional): As for :func:`quantize`, of the ReLU's output.
        inplace (bool): Whether ``x`` takes the result.

    Returns:
        tuple[Tensor, Tensor]: The result, and a bool tensor that tells where
        its straight-through gradient is 1.
    """
    return _for(x, clip).quantize_relu(x, clip, bits, seen, inplace)


def mask_outside(grad: Tensor, x: Tensor, clip: Tensor, signed: bool = True,
                 group_size: int = -1) -> Tensor:
    """Straight-through gradient: ``grad`` where ``x`` lies inside its range,
    bounds included, 0 elsewhere. May overwrite ``grad``."""
    return _for(x, clip, grad).mask_outside(grad, x, clip, signed, group_size)


def mask_outside_shifted(grad: Tensor, x: Tensor, clip: Tensor, zero: Tensor,
                         bits: int) -> Tensor:
    """:func:`mask_outside` of the range of :func:`quantize_shifted`."""
    return _for(x, clip, grad).mask_outside_shifted(grad, x, clip, zero, bits)


def project_(weight: Tensor, clip: Tensor, k: float, group_size: int) -> None:
    """Scale-Clip in place (Eq. 7 to 9).

    Args:
        weight (Tensor): Shape ``(num_filters, ...)``, is clipped.
        clip (Tensor): Shape ``(num_groups, )``, becomes ``k * mean|G|``.
        k (float): The factor.
        group_size (int): Filters per group, -1 for all.
    """
    _for(weight, clip).project_(weight, clip, k, group_size)


class Grid(NamedTuple):
    """What a tensor is quantized to.

    Args:
        clip (Tensor): Clip value, a scalar or one per group; with ``zero``
            the width of the range.
        bits (int): Number of bits.
        signed (bool): Whether codes are signed.
        group_size (int): Filters per group, -1 for all.
        all_inside (bool): Whether all values are known to lie inside the
            range: their straight-through gradient is 1.
        seen (Tensor, optional): Where statistics are added up.
        even (bool): Whether there are ``2^bits`` levels, none of them zero.
        zero (Tensor, optional): Code of zero of unsigned codes.
    """
    clip: Tensor
    bits: int
    signed: bool = True
    group_size: int = -1
    all_inside: bool = False
    seen: Optional[Tensor] = None
    even: bool = False
    zero: Optional[Tensor] = None

    def quantize(self, x: Tensor, slot: Optional[str] = None) -> Tensor:
        """See :func:`quantize`, and those of other levels."""
        if self.zero is not None:
            return quantize_shifted(x, self.clip, self.zero, self.bits, slot)
        if self.even:
            return quantize_even(x, self.clip, self.bits, self.group_size,
                                 slot)
        return quantize(x, self.clip, self.bits, self.signed,
                        self.group_size, self.seen, slot)

    def gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """See :func:`mask_outside`; at 1 bit the gradient is 1 everywhere."""
        if self.all_inside or self.bits == 1:
            return grad
        if self.zero is not None:
            return mask_outside_shifted(grad, x, self.clip, self.zero,
                                        self.bits)
        return mask_outside(grad, x, self.clip, self.signed, self.group_size)

    def __bool__(self) -> bool:
        return True
