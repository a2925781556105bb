"""Convolution with quantized weight and input.

Paper: "Low-bit Quantization Needs Good Distribution" (Yu et al.).
"""
from torch import Tensor, nn

from . import fused
from .base import QuantLayer


class QuantConv2d(QuantLayer, nn.Conv2d):
    """``nn.Conv2d`` on a quantized input with a quantized weight."""

    def forward(self, x: Tensor) -> Tensor:
        if self.is_plain() or x.dim() != 4 or self.padding_mode != 'zeros' \
                or isinstance(self.padding, str):
            return self._conv_forward(
                self.quantized_input(x), self.quantized_weight(), self.bias)
        operation = fused.Convolution(self.stride, self.padding,
                                      self.dilation, self.groups)
        return self.run_fused(operation, x)
