"""Modules whose parameters and buffers keep the digits of float32."""
import torch
from torch import Tensor, nn


class KeepsDigits(nn.Module):
    """A module that a move to half precision leaves in float32: a threshold
    in bfloat16 moves no more."""

    def _apply(self, fn, *args, **kwargs):

        def keep_digits(x: Tensor) -> Tensor:
            result = fn(x)
            if result.dtype in (torch.float16, torch.bfloat16):
                return x.to(result.device, torch.float32)
            return result

        return super()._apply(keep_digits, *args, **kwargs)
