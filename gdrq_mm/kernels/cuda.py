"""The work of :mod:`.eager` on a GPU: Triton kernels, one pass over the data.

Tensors are read as they lie in memory, whatever their shape, so that one
kernel serves all layers and image sizes. Sums are added up in a fixed order:
a training gives the same thresholds each time.
"""
import functools
from typing import Optional, Tuple

import torch
from torch import Tensor

from ..functional import num_levels
from . import eager
from . import triton_kernels as compiled
from .cpu import increment_version

BLOCK = 2048  # values that a program takes at once
PROGRAMS = 1024  # of a kernel that adds up: one sum each
# In one group of a projection, which a single program reads; more are left to
# plain PyTorch, which shares them out.
MOST_IN_GROUP = 1 << 17
MOST_VALUES = 2**31 - PROGRAMS * BLOCK  # indices have 32 bits
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def takes(x: Tensor, clip: Tensor, other: Optional[Tensor] = None) -> bool:
    """Whether the kernels know this: values of at most 32 bits without gaps,
    all alike, each filter in one piece."""
    if x.dtype not in FLOATS or clip.dtype is not torch.float32 \
            or not clip.is_contiguous() or not 0 < x.numel() <= MOST_VALUES:
        return False
    if clip.dim() and x.stride(0) * x.shape[0] != x.numel():
        return False
    return _is_dense(x) and (other is None or other.dtype in FLOATS)


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.dim() == 4 and x.is_contiguous(
        memory_format=torch.channels_last) or \
        torch.empty_like(x, device='meta').stride() == x.stride()


def _group_values(x: Tensor, clip: Tensor, group_size: int) -> int:
    """Values that share a clip value."""
    filters = x.shape[0] if clip.dim() else 1
    size = filters if group_size == -1 or not clip.dim() else group_size
    return x.numel() // filters * size


@functools.lru_cache(None)
def _levels(bits: int, signed: bool) -> Tuple[float, float]:
    """Levels, and the largest scale: no code times it may overflow."""
    levels, finfo = num_levels(bits, signed), torch.finfo(torch.float32)
    return float(levels), finfo.max / levels * (1 - finfo.eps)


def _launch(kernel, programs: int, first: Tensor, *arguments,
            **constants) -> None:
    """Start a kernel on the GPU that the first argument is on."""
    if first.is_cuda and first.get_device() != torch.cuda.current_device():
        with torch.cuda.device(first.device):
            kernel[(programs, )](first, *arguments, **constants)
    else:
        kernel[(programs, )](first, *arguments, **constants)


def _blocks(x: Tensor) -> int:
    return -(-x.numel() // BLOCK)


def _run_with_sums(x: Tensor, clip: Tensor, out: Tensor, inside: Tensor,
                   bits: int, signed: bool, relu: bool, seen: Tensor) -> None:
    programs = min(_blocks(x), PROGRAMS)
    sums = torch.empty(2 * programs, dtype=torch.float32, device=x.device)
    _launch(compiled.quantize_and_sum, programs, x, clip, out, inside, sums,
            x.numel(), *_levels(bits, signed), SIGNED=signed, RELU=relu,
            BLOCK=BLOCK)
    _launch(compiled.add_sums, 1, sums, seen, programs, x.numel(),
            PROGRAMS=PROGRAMS)


@torch.no_grad()
def quantize(x: Tensor, clip: Tensor, bits: int, signed: bool,
             group_size: int, seen: Optional[Tensor],
             slot: Optional[str] = None) -> Tensor:
    out = torch.empty_like(x)
    if seen is not None and clip.dim() == 0:
        _run_with_sums(x, clip, out, out, bits, signed, False, seen)
        return out
    eager.see(seen, x)
    _launch(compiled.quantize, _blocks(x), x, clip, out, x.numel(),
            _group_values(x, clip, group_size), *_levels(bits, signed),
            SIGNED=signed, EVEN=False, GROUPED=clip.dim() > 0, BLOCK=BLOCK)
    return out


@torch.no_grad()
def quantize_even(x: Tensor, clip: Tensor, bits: int, group_size: int,
                  slot: Optional[str] = None) -> Tensor:
    out = torch.empty_like(x)
    _launch(compiled.quantize, _blocks(x), x, clip, out, x.numel(),
            _group_values(x, clip, group_size), float(2**(bits - 1)), 0.,
            SIGNED=True, EVEN=True, GROUPED=clip.dim() > 0, BLOCK=BLOCK)
    return out


@torch.no_grad()
def quantize_shifted(x: Tensor, clip: Tensor, zero: Tensor, bits: int,
                     slot: Optional[str] = None) -> Tensor:
    out = torch.empty_like(x)
    _launch(compiled.quantize_shifted, _blocks(x), x, clip, zero, out,
            x.numel(), float(2**bits - 1), BLOCK=BLOCK)
    return out


@torch.no_grad()
def quantize_relu(x: Tensor, clip: Tensor, bits: int, seen: Optional[Tensor],
                  inplace: bool) -> Tuple[Tensor, Tensor]:
    out = x if inplace else torch.empty_like(x)
    inside = torch.empty_like(x, dtype=torch.bool)
    if seen is not None:
        _run_with_sums(x, clip, out, inside.view(torch.uint8), bits, False,
                       True, seen)
    else:
        _launch(compiled.quantize_relu, _blocks(x), x, clip, out,
                inside.view(torch.uint8), x.numel(), *_levels(bits, False),
                BLOCK=BLOCK)
    return out, inside


@torch.no_grad()
def mask_outside(grad: Tensor, x: Tensor, clip: Tensor, signed: bool,
                 group_size: int) -> Tensor:
    grad = _laid_out_like(x, grad)
    _launch(compiled.mask_outside, _blocks(x), grad, x, clip, x.numel(),
            _group_values(x, clip, group_size), SIGNED=signed,
            GROUPED=clip.dim() > 0, BLOCK=BLOCK)
    return grad


def _laid_out_like(x: Tensor, grad: Tensor) -> Tensor:
    return grad if grad.stride() == x.stride() else torch.empty_like(
        x, dtype=grad.dtype).copy_(grad)


@torch.no_grad()
def mask_outside_shifted(grad: Tensor, x: Tensor, clip: Tensor, zero: Tensor,
                         bits: int) -> Tensor:
    grad = _laid_out_like(x, grad)
    _launch(compiled.mask_outside_shifted, _blocks(x), grad, x, clip, zero,
            x.numel(), float(2**bits - 1), BLOCK=BLOCK)
    return grad


@torch.no_grad()
def project_(weight: Tensor, clip: Tensor, k: float, group_size: int) -> None:
    values = _group_values(weight, clip, group_size)
    if values > MOST_IN_GROUP:
        eager.project_(weight, clip, k, group_size)
        return
    _launch(compiled.project, clip.numel(), weight, clip, weight.numel(),
            values, float(k), BLOCK=BLOCK)
    # Writing by address does not count as a change: say it to autograd.
    increment_version(weight)
    increment_version(clip)
