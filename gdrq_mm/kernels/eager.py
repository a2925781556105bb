"""The work in plain PyTorch: what fused kernels must equal, and what runs
where there are none."""
from typing import Optional, Tuple

import torch
from torch import Tensor

from .. import functional as F


def _broadcast(clip: Tensor, x: Tensor, group_size: int) -> Tensor:
    return clip if clip.dim() == 0 else F.expand_clip(clip, x, group_size)


def see(seen: Optional[Tensor], x: Tensor) -> None:
    """Add ``sum|x|``, the number of values and that of non-zero ones to
    ``seen``."""
    if seen is not None and x.numel():
        seen[0] += torch.linalg.vector_norm(
            x, 1, dtype=torch.promote_types(x.dtype, torch.float32))
        seen[1] += x.numel()
        seen[2] += x.count_nonzero()


@torch.no_grad()
def quantize(x: Tensor, clip: Tensor, bits: int, signed: bool,
             group_size: int, seen: Optional[Tensor],
             slot: Optional[str] = None) -> Tensor:
    see(seen, x)
    codes, scale = F.quantize_codes(x, _broadcast(clip, x, group_size), bits,
                                    signed)
    return codes.mul_(scale).to(x.dtype)


@torch.no_grad()
def quantize_even(x: Tensor, clip: Tensor, bits: int, group_size: int,
                  slot: Optional[str] = None) -> Tensor:
    codes, scale = F.quantize_codes(x, _broadcast(clip, x, group_size), bits,
                                    even=True)
    return codes.mul_(scale).to(x.dtype)


@torch.no_grad()
def quantize_shifted(x: Tensor, clip: Tensor, zero: Tensor, bits: int,
                     slot: Optional[str] = None) -> Tensor:
    step, low, high = F.shifted_range(clip, zero, bits)
    ratio = F.at_least_float32(x) / step
    return ratio.round_().clamp_(low, high).mul_(step).to(x.dtype)


@torch.no_grad()
def quantize_relu(x: Tensor, clip: Tensor, bits: int, seen: Optional[Tensor],
                  inplace: bool) -> Tuple[Tensor, Tensor]:
    inside = (x > 0) & (x.to(clip.dtype) <= clip)
    positive = torch.relu_(x) if inplace else torch.relu(x)
    out = quantize(positive, clip, bits, False, -1, seen)
    return (x.copy_(out) if inplace else out), inside


@torch.no_grad()
def mask_outside(grad: Tensor, x: Tensor, clip: Tensor, signed: bool,
                 group_size: int) -> Tensor:
    high = _broadcast(clip, x, group_size)
    x = x.to(torch.promote_types(x.dtype, high.dtype))
    low = -high if signed else torch.zeros_like(high)
    return grad.masked_fill_(~((x >= low) & (x <= high)), 0)


@torch.no_grad()
def mask_outside_shifted(grad: Tensor, x: Tensor, clip: Tensor, zero: Tensor,
                         bits: int) -> Tensor:
    step, low, high = F.shifted_range(clip, zero, bits)
    ratio = F.at_least_float32(x) / step
    return grad.masked_fill_(~((ratio >= low) & (ratio <= high)), 0)


@torch.no_grad()
def project_(weight: Tensor, clip: Tensor, k: float, group_size: int) -> None:
    clip.copy_(F.clip_threshold(weight, k, group_size))
    bound = _broadcast(clip, weight, group_size).to(weight.dtype)
    torch.clamp(weight, -bound, bound, out=weight)
