"""mmcv's convolution that pads by the size of its input, on codes."""
import torch.nn.functional as F
from torch import Tensor

from ..merge import MergedConv2d


class MergedAdaptivePadding(MergedConv2d):
    """Merged form of mmcv's ``Conv2dAdaptivePadding``: as many outputs as
    there are strides in the input, whatever its size."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for axis in (1, 0):
            length, stride = x.shape[2 + axis], self.stride[axis]
            reach = (self.weight.shape[2 + axis] - 1) * self.dilation[axis] + 1
            missing = max((-(-length // stride) - 1) * stride + reach - length,
                          0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, pads) if any(pads) else x)
