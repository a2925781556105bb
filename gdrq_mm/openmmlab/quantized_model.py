"""A model type that is quantized as soon as it is built."""
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import nn

from ..convert import quantize_
from .averaging import average_what_was_added
from .checks import check_model


@MODELS.register_module()
class QuantizedModel:
    """Build a model and convert it; returns the model itself.

    Inferencers and other code that runs no hooks get a quantized model this
    way, so published configs use it. To train it no hook is needed;
    ``GDRQHook`` (without ``quantization``) adds phases and logs.

    Args:
        architecture (str): The ``type`` that the model had before.
        quantization (dict): See :class:`gdrq_mm.QuantConfig`.
        **kwargs: The model's own arguments.

    Returns:
        nn.Module: An object of the architecture's class.

    Examples:
        >>> _base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
        >>> model = dict(
        ...     type='QuantizedModel',
        ...     architecture='FasterRCNN',
        ...     quantization=dict(weight=dict(bits=4)))
    """

    def __new__(cls, architecture: str, quantization: dict,
                **kwargs) -> nn.Module:
        model = MODELS.build(dict(type=architecture, **kwargs))
        check_model(model)
        quantize_(model, quantization.to_dict() if hasattr(
            quantization, 'to_dict') else quantization)
        average_what_was_added(model)
        return model


def float_model_config(model: ConfigDict) -> ConfigDict:
    """Config of the float model behind a ``QuantizedModel``; others as they
    are.

    Args:
        model (ConfigDict): The ``model`` of a config.
    """
    if model.get('quantization') is None:
        return model
    fields = {key: value for key, value in model.items()
              if key not in ('quantization', 'architecture')}
    return ConfigDict(fields, type=model.architecture)
