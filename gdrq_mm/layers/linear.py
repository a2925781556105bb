"""Linear layer with quantized weight and input.

Paper: "Low-bit Quantization Needs Good Distribution" (Yu et al.); a filter is
one row of the weight.
"""
import torch.nn.functional as F
from torch import Tensor, nn

from . import fused
from .base import QuantLayer


class QuantLinear(QuantLayer, nn.Linear):
    """``nn.Linear`` on a quantized input with a quantized weight."""

    def forward(self, input: Tensor) -> Tensor:
        if self.is_plain():
            return F.linear(self.quantized_input(input),
                            self.quantized_weight(), self.bias)
        return self.run_fused(fused.Linear(), input)
