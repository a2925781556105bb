"""mmcv's layers, which the models of OpenMMLab build."""
from torch import nn

from ..layers import QuantConv2d, QuantLinear, register_quant_layer


def merged_adaptive_padding(*arguments) -> nn.Module:
    """The integer form of ``Conv2dAdaptivePadding``; loaded when a model is
    merged, as training needs no deployment."""
    from .adaptive_padding import MergedAdaptivePadding
    return MergedAdaptivePadding(*arguments)


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
        integer=merged_adaptive_padding)
    try:
        from mmcv import ops
    except ImportError:  # mmcv-lite has none
        return
    # Weight and input; what is sampled between the pixels is float.
    for layer in (ops.DeformConv2d, ops.DeformConv2dPack,
                  ops.ModulatedDeformConv2d, ops.ModulatedDeformConv2dPack):
        register_quant_layer(layer)
