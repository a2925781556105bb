"""Linear layer with quantized weight and input.

Paper: "Low-bit Quantization Needs Good Distribution" (Yu et al.); a filter is
one row of the weight.
"""
import torch.nn.functional as F
from torch import Tensor, nn

from .base import QuantLayer


class QuantLinear(QuantLayer, nn.Linear):
    """``nn.Linear`` on a quantized input with a quantized weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(
            self.quantized_input(x), self.quantized_weight(), self.bias)
