"""mmcv's layers, which the models of OpenMMLab build."""
import torch.nn.functional as F
from torch import Tensor

from ..layers import QuantConv2d, QuantLinear, register_quant_layer
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


def register_mmcv_layers() -> None:
    """Make mmcv's layers known."""
    try:
        from mmcv.cnn import bricks
    except ImportError:  # mmengine alone, without mmcv
        return
    # On current torch these only call the forward of their base.
    register_quant_layer(bricks.wrappers.Conv2d, QuantConv2d)
    register_quant_layer(bricks.wrappers.Linear, QuantLinear)
    for layer in (bricks.wrappers.Conv3d, bricks.wrappers.ConvTranspose2d,
                  bricks.wrappers.ConvTranspose3d,
                  # Standardized after rounding: still evenly spaced values,
                  # with a step and an offset a filter.
                  bricks.conv_ws.ConvWS2d, bricks.conv_ws.ConvAWS2d):
        register_quant_layer(layer)
    register_quant_layer(
        bricks.conv2d_adaptive_padding.Conv2dAdaptivePadding,
        integer=MergedAdaptivePadding)
    try:
        from mmcv import ops
    except ImportError:  # mmcv-lite has none
        return
    # Weight and input; what is sampled between the pixels is float.
    for layer in (ops.DeformConv2d, ops.DeformConv2dPack,
                  ops.ModulatedDeformConv2d, ops.ModulatedDeformConv2dPack):
        register_quant_layer(layer)
