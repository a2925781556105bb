"""The work of :mod:`.eager` for CUDA, fused by ``torch.compile``.

Levels, bounds and statistics are tensors and all blocks have two dimensions,
so that one graph serves all layers, bits and image sizes: nothing is compiled
again after the first steps.
"""
import functools
from typing import Optional, Tuple

import torch
from torch import Tensor

from .. import functional as F
from .eager import project_  # noqa: F401 (a few small kernels a layer)
from .optimizer_hooks import keep_optimizer_hooks


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(
        memory_format=torch.channels_last)


def _block(x: Tensor, rows: int) -> Tensor:
    """``x`` as a block of rows; a view where it has no gaps."""
    if _is_channels_last(x):
        x = x.permute(0, 2, 3, 1)
    return x.detach().reshape(rows, -1)


def _unblock(block: Tensor, x: Tensor) -> Tensor:
    if _is_channels_last(x):
        strides = x.stride()
    else:
        strides = torch.empty(x.shape, device='meta').stride()
    # The same memory, but no view of the block: what an autograd function
    # returns may be modified in place.
    return torch.empty(0, dtype=block.dtype, device=block.device).set_(
        block.untyped_storage(), block.storage_offset(), x.shape, strides)


def _rows(x: Tensor, clip: Tensor, group_size: int) -> Tuple[Tensor, Tensor]:
    if clip.dim() == 0:
        return _block(x, 1), clip.view(1, 1)
    return (_block(x, x.shape[0]),
            F.expand_clip(clip, x, group_size).reshape(-1, 1))


@functools.lru_cache(None)
def _levels(bits: int, signed: bool, device: torch.device) -> Tensor:
    """Levels, largest scale, and 1 for a signed range."""
    levels, finfo = F.num_levels(bits, signed), torch.finfo(torch.float32)
    return torch.tensor(
        [levels, finfo.max / levels * (1 - finfo.eps), float(signed)],
        device=device)


def _on_grid(x: Tensor, clip: Tensor, levels: Tensor) -> Tensor:
    scale = torch.minimum(clip / levels[0], levels[1])
    divisor = torch.where(scale >= torch.finfo(torch.float32).tiny, scale,
                          torch.ones_like(scale))
    inside = torch.minimum(torch.maximum(x, -clip * levels[2]), clip)
    return torch.round(inside / divisor) * scale


@functools.partial(torch.compile, dynamic=True)
def _quantize(x, clip, levels):
    return _on_grid(x.float(), clip, levels).to(x.dtype)


@functools.partial(torch.compile, dynamic=True)
def _quantize_even(x, clip, levels):
    value, step = x.float(), clip / levels[0]
    divisor = torch.where(step >= torch.finfo(torch.float32).tiny, step,
                          torch.ones_like(step))
    inside = torch.minimum(torch.maximum(value, -clip), clip)
    code = torch.minimum(torch.floor(inside / divisor), levels[0] - 1)
    return ((2 * code + 1) * (step / 2)).to(x.dtype)


@functools.partial(torch.compile, dynamic=True)
def _quantize_and_sum(x, clip, levels):
    value = x.float()
    return (_on_grid(value, clip, levels).to(x.dtype), value.abs().sum(),
            (value != 0).sum())


@functools.partial(torch.compile, dynamic=True)
def _quantize_relu(x, clip, levels):
    value = x.float()
    return (_on_grid(value, clip, levels).to(x.dtype),
            (value > 0) & (value <= clip), value.clamp(min=0).sum(),
            (value.clamp(min=0) != 0).sum())


@functools.partial(torch.compile, dynamic=True)
def _mask_outside(grad, x, clip, levels):
    x = x.float()
    return torch.where((x >= -clip * levels[2]) & (x <= clip), grad,
                       torch.zeros_like(grad))


# Compiled for the first time, in the middle of a training step.
keep_optimizer_hooks()


def _see(seen: Optional[Tensor], total: Tensor, number: int,
         nonzero: Tensor) -> None:
    if seen is not None:
        seen[0] += total
        seen[1] += number
        seen[2] += nonzero


@torch.no_grad()
def quantize(x: Tensor, clip: Tensor, bits: int, signed: bool,
             group_size: int, seen: Optional[Tensor],
             slot: Optional[str] = None) -> Tensor:
    levels = _levels(bits, signed, x.device)
    block, clip = _rows(x, clip, group_size)
    if seen is None:
        return _unblock(_quantize(block, clip, levels), x)
    out, total, nonzero = _quantize_and_sum(block, clip, levels)
    _see(seen, total, x.numel(), nonzero)
    return _unblock(out, x)


@functools.lru_cache(None)
def _half(bits: int, device: torch.device) -> Tensor:
    """Levels above zero, where their number is even."""
    return torch.tensor([2.**(bits - 1)], device=device)


@torch.no_grad()
def quantize_even(x: Tensor, clip: Tensor, bits: int, group_size: int,
                  slot: Optional[str] = None) -> Tensor:
    block, clip = _rows(x, clip, group_size)
    return _unblock(_quantize_even(block, clip, _half(bits, x.device)), x)


@torch.no_grad()
def quantize_relu(x: Tensor, clip: Tensor, bits: int, seen: Optional[Tensor],
                  inplace: bool) -> Tuple[Tensor, Tensor]:
    block, clip = _rows(x, clip, -1)
    out, inside, total, nonzero = _quantize_relu(
        block, clip, _levels(bits, False, x.device))
    _see(seen, total, x.numel(), nonzero)
    out = _unblock(out, x)
    return (x.copy_(out) if inplace else out), _unblock(inside, x)


@torch.no_grad()
def mask_outside(grad: Tensor, x: Tensor, clip: Tensor, signed: bool,
                 group_size: int) -> Tensor:
    block, clip = _rows(x, clip, group_size)
    if grad.stride() != x.stride():
        grad = torch.empty_like(x, dtype=grad.dtype).copy_(grad)
    return _unblock(
        _mask_outside(_block(grad, block.shape[0]), block, clip,
                      _levels(bits=2, signed=signed, device=x.device)), x)
