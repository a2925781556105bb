"""Triton kernels: what a program does with its blocks of values."""
import torch
import triton
import triton.language as tl

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
def quantize(x, clip, out, n, group_values, levels, largest,
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
def quantize_and_sum(x, clip, out, inside, sums, n, levels, largest,
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
def quantize_relu(x, clip, out, inside, n, levels, largest,
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
def add_sums(sums, seen, programs, n, PROGRAMS: tl.constexpr):
    at = tl.arange(0, PROGRAMS)
    mask = at < programs
    total = tl.sum(tl.load(sums + at, mask=mask, other=0.))
    nonzero = tl.sum(tl.load(sums + programs + at, mask=mask, other=0.))
    tl.store(seen, tl.load(seen) + total)
    tl.store(seen + 1, tl.load(seen + 1) + n)
    tl.store(seen + 2, tl.load(seen + 2) + nonzero)


@triton.jit
def mask_outside(grad, x, clip, n, group_values, SIGNED: tl.constexpr,
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
def quantize_shifted(x, clip, zero, out, n, levels, BLOCK: tl.constexpr):
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
def mask_outside_shifted(grad, x, clip, zero, n, levels,
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
def project(weight, clip, n, group_values, k, BLOCK: tl.constexpr):
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
