"""Convolution with quantized weight and input.

Paper: "Low-bit Quantization Needs Good Distribution" (Yu et al.).
"""
from torch import Tensor, nn

from . import fused
from .base import QuantLayer


class QuantConv2d(QuantLayer, nn.Conv2d):
    """``nn.Conv2d`` on a quantized input with a quantized weight."""

    def forward(self, input: Tensor) -> Tensor:
        if self.is_plain() or input.dim() != 4 or isinstance(
                self.padding, str) or self.padding_mode != 'zeros':
            return self._conv_forward(self.quantized_input(input),
                                      self.quantized_weight(), self.bias)
        operation = fused.Convolution(self.stride, self.padding,
                                      self.dilation, self.groups)
        return self.run_fused(operation, input)
