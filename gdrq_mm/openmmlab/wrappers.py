"""What mmengine puts around a model: distributed and test-time wrappers."""
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, which checkpoints are of.

    Args:
        model (nn.Module): A model, or a wrapper around one.
    """
    wrapped = is_model_wrapper(model) or isinstance(model, BaseTTAModel)
    return unwrap(model.module) if wrapped else model
