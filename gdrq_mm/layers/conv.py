"""Convolution with quantized weight and input.

Paper: "Low-bit Quantization Needs Good Distribution" (Yu et al.).
"""
from torch import Tensor, nn

from .base import QuantLayer


class QuantConv2d(QuantLayer, nn.Conv2d):
    """``nn.Conv2d`` on a quantized input with a quantized weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(
            self.quantized_input(x), self.quantized_weight(), self.bias)
