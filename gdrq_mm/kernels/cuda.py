"""The work of :mod:`.eager` on a GPU: Triton kernels, one pass over the data.

Tensors are read as they lie in memory, whatever their shape, so that one
kernel serves all layers and image sizes. Sums are added up in a fixed order:
a training gives the same thresholds each time.
"""
import functools
from typing import Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..functional import num_levels
from . import eager
from .cpu import increment_version

BLOCK = 2048  # values that a program takes at once
PROGRAMS = 1024  # of a kernel that adds up: one sum each
# In one group of a projection, which a single program reads; more are left to
# plain PyTorch, which shares them out.
MOST_IN_GROUP = 1 << 17
MOST_VALUES = 2**31 - PROGRAMS * BLOCK  # indices have 32 bits
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

_LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
# Adding and subtracting it rounds to integers, half to even, below 2^22.
_ROUNDS = tl.constexpr(1.5 * 2**23)


# Comparisons, not tl.minimum and tl.maximum: NaN must stay NaN.
@triton.jit
def _clamped(x, low, high):
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def _divisor(scale):
    # A scale of 0, or one that lost its precision, divides by 1: codes of 0.
    return tl.where(scale >= _TINY, scale, 1.)


@triton.jit
def _on_grid(x, clip, levels, largest, SIGNED: tl.constexpr):
    scale = tl.div_rn(clip, levels)
    scale = tl.where(scale > largest, largest, scale)
    inside = _clamped(x, -clip if SIGNED else 0., clip)
    code = tl.div_rn(inside, _divisor(scale))
    return ((code + _ROUNDS) - _ROUNDS) * scale


@triton.jit
def _on_even_grid(x, clip, half):
    step = tl.div_rn(clip, half)
    code = tl.floor(tl.div_rn(_clamped(x, -clip, clip), _divisor(step)))
    # The upper bound belongs to the last interval.
    code = tl.where(code > half - 1, half - 1, code)
    return (2 * code + 1) * (step * .5)


@triton.jit
def _clip_of(clip, at, mask, group_values, GROUPED: tl.constexpr):
    if GROUPED:
        top = tl.load(clip + at // group_values, mask=mask, other=0.)
    else:
        top = tl.load(clip)
    return top


@triton.jit
def _quantize(x, clip, out, n, group_values, levels, largest,
              SIGNED: tl.constexpr, EVEN: tl.constexpr,
              GROUPED: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    value = tl.load(x + at, mask=mask, other=0.).to(tl.float32)
    top = _clip_of(clip, at, mask, group_values, GROUPED)
    if EVEN:
        value = _on_even_grid(value, top, levels)
    else:
        value = _on_grid(value, top, levels, largest, SIGNED)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _quantize_and_sum(x, clip, out, inside, sums, n, levels, largest,
                      SIGNED: tl.constexpr, RELU: tl.constexpr,
                      BLOCK: tl.constexpr):
    top = tl.load(clip)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    nonzero = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(tl.program_id(0) * BLOCK, n,
                       tl.num_programs(0) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < n
        value = tl.load(x + at, mask=mask, other=0.).to(tl.float32)
        if RELU:
            tl.store(inside + at, ((value > 0) & (value <= top)).to(tl.uint8),
                     mask=mask)
            value = tl.where(value < 0, 0., value)
        total += tl.abs(value)
        nonzero += tl.where(value != 0, 1., 0.)
        value = _on_grid(value, top, levels, largest, SIGNED)
        tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)
    tl.store(sums + tl.program_id(0), tl.sum(total))
    tl.store(sums + tl.num_programs(0) + tl.program_id(0), tl.sum(nonzero))


@triton.jit
def _quantize_relu(x, clip, out, inside, n, levels, largest,
                   BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    top = tl.load(clip)
    value = tl.load(x + at, mask=mask, other=0.).to(tl.float32)
    tl.store(inside + at, ((value > 0) & (value <= top)).to(tl.uint8),
             mask=mask)
    value = _on_grid(value, top, levels, largest, False)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _add_sums(sums, seen, programs, n, PROGRAMS: tl.constexpr):
    at = tl.arange(0, PROGRAMS)
    mask = at < programs
    total = tl.sum(tl.load(sums + at, mask=mask, other=0.))
    nonzero = tl.sum(tl.load(sums + programs + at, mask=mask, other=0.))
    tl.store(seen, tl.load(seen) + total)
    tl.store(seen + 1, tl.load(seen + 1) + n)
    tl.store(seen + 2, tl.load(seen + 2) + nonzero)


@triton.jit
def _mask_outside(grad, x, clip, n, group_values, SIGNED: tl.constexpr,
                  GROUPED: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    value = tl.load(x + at, mask=mask, other=0.).to(tl.float32)
    top = _clip_of(clip, at, mask, group_values, GROUPED)
    inside = (value >= (-top if SIGNED else 0.)) & (value <= top)
    kept = tl.load(grad + at, mask=mask, other=0.)
    tl.store(grad + at, tl.where(inside, kept, 0.), mask=mask)


@triton.jit
def _shifted_step(clip, levels):
    step = tl.div_rn(tl.load(clip), levels)
    return tl.where(step < _TINY, _TINY, step)


@triton.jit
def _quantize_shifted(x, clip, zero, out, n, levels, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    value = tl.load(x + at, mask=mask, other=0.).to(tl.float32)
    step, code_of_zero = _shifted_step(clip, levels), tl.load(zero)
    # The ends are integers: clamped before it is rounded, it is small enough.
    code = _clamped(tl.div_rn(value, step), -code_of_zero,
                    levels - code_of_zero)
    value = ((code + _ROUNDS) - _ROUNDS) * step
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _mask_outside_shifted(grad, x, clip, zero, n, levels,
                          BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    value = tl.load(x + at, mask=mask, other=0.).to(tl.float32)
    code_of_zero = tl.load(zero)
    ratio = tl.div_rn(value, _shifted_step(clip, levels))
    inside = (ratio >= -code_of_zero) & (ratio <= levels - code_of_zero)
    kept = tl.load(grad + at, mask=mask, other=0.)
    tl.store(grad + at, tl.where(inside, kept, 0.), mask=mask)


@triton.jit
def _project(weight, clip, n, group_values, k, BLOCK: tl.constexpr):
    begin = tl.program_id(0) * group_values
    end = tl.where(begin + group_values < n, begin + group_values, n)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.abs(tl.load(weight + at, mask=at < end, other=0.).to(
            tl.float32))
    top = k * tl.div_rn(tl.sum(total), (end - begin).to(tl.float32))
    top = tl.where(top > _LARGEST, _LARGEST, top)
    tl.store(clip + tl.program_id(0), top)
    # The bound that plain PyTorch clips to is of the weight's dtype.
    top = top.to(weight.dtype.element_ty).to(tl.float32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(weight + at, mask=at < end, other=0.).to(tl.float32)
        value = _clamped(value, -top, top).to(weight.dtype.element_ty)
        tl.store(weight + at, value, mask=at < end)


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
    _launch(_quantize_and_sum, programs, x, clip, out, inside, sums,
            x.numel(), *_levels(bits, signed), SIGNED=signed, RELU=relu,
            BLOCK=BLOCK)
    _launch(_add_sums, 1, sums, seen, programs, x.numel(), PROGRAMS=PROGRAMS)


@torch.no_grad()
def quantize(x: Tensor, clip: Tensor, bits: int, signed: bool,
             group_size: int, seen: Optional[Tensor],
             slot: Optional[str] = None) -> Tensor:
    out = torch.empty_like(x)
    if seen is not None and clip.dim() == 0:
        _run_with_sums(x, clip, out, out, bits, signed, False, seen)
        return out
    eager.see(seen, x)
    _launch(_quantize, _blocks(x), x, clip, out, x.numel(),
            _group_values(x, clip, group_size), *_levels(bits, signed),
            SIGNED=signed, EVEN=False, GROUPED=clip.dim() > 0, BLOCK=BLOCK)
    return out


@torch.no_grad()
def quantize_even(x: Tensor, clip: Tensor, bits: int, group_size: int,
                  slot: Optional[str] = None) -> Tensor:
    out = torch.empty_like(x)
    _launch(_quantize, _blocks(x), x, clip, out, x.numel(),
            _group_values(x, clip, group_size), float(2**(bits - 1)), 0.,
            SIGNED=True, EVEN=True, GROUPED=clip.dim() > 0, BLOCK=BLOCK)
    return out


@torch.no_grad()
def quantize_shifted(x: Tensor, clip: Tensor, zero: Tensor, bits: int,
                     slot: Optional[str] = None) -> Tensor:
    out = torch.empty_like(x)
    _launch(_quantize_shifted, _blocks(x), x, clip, zero, out, x.numel(),
            float(2**bits - 1), BLOCK=BLOCK)
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
        _launch(_quantize_relu, _blocks(x), x, clip, out,
                inside.view(torch.uint8), x.numel(), *_levels(bits, False),
                BLOCK=BLOCK)
    return out, inside


@torch.no_grad()
def mask_outside(grad: Tensor, x: Tensor, clip: Tensor, signed: bool,
                 group_size: int) -> Tensor:
    grad = _laid_out_like(x, grad)
    _launch(_mask_outside, _blocks(x), grad, x, clip, x.numel(),
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
    _launch(_mask_outside_shifted, _blocks(x), grad, x, clip, zero, x.numel(),
            float(2**bits - 1), BLOCK=BLOCK)
    return grad


@torch.no_grad()
def project_(weight: Tensor, clip: Tensor, k: float, group_size: int) -> None:
    values = _group_values(weight, clip, group_size)
    if values > MOST_IN_GROUP:
        eager.project_(weight, clip, k, group_size)
        return
    _launch(_project, clip.numel(), weight, clip, weight.numel(), values,
            float(k), BLOCK=BLOCK)
    # Writing by address does not count as a change: say it to autograd.
    increment_version(weight)
    increment_version(clip)
