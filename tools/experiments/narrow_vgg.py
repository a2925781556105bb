"""The VGG of mmpretrain with fewer channels; it has no setting for that."""
from mmcv.cnn import ConvModule
from mmpretrain.models.backbones import VGG
from mmpretrain.registry import MODELS


@MODELS.register_module()
class NarrowVGG(VGG):
    """VGG whose convolutions have ``1 / divisor`` of the channels.

    Args:
        depth (int): Depth of the VGG.
        divisor (int): What the numbers of channels are divided by.
        norm_cfg (dict, optional): Normalization. Defaults to None.
        **kwargs: Further arguments of the VGG.
    """

    def __init__(self, depth, divisor, norm_cfg=None, **kwargs):
        super().__init__(depth, norm_cfg=norm_cfg, **kwargs)
        channels = 3
        for index, layer in enumerate(self.features):
            if isinstance(layer, ConvModule):
                width = layer.out_channels // divisor
                self.features[index] = ConvModule(
                    channels, width, 3, padding=1, norm_cfg=norm_cfg)
                channels = width
