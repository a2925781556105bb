"""mmcv's wrappers of torch layers, which the models of OpenMMLab build."""
from ..layers import QuantConv2d, QuantLinear, register_quant_layer


def register_mmcv_layers() -> None:
    """Make mmcv's Conv2d and Linear known; on current torch they only call
    the forward of their base."""
    try:
        from mmcv.cnn.bricks import wrappers
    except ImportError:  # mmengine alone, without mmcv
        return
    register_quant_layer(wrappers.Conv2d, QuantConv2d)
    register_quant_layer(wrappers.Linear, QuantLinear)
