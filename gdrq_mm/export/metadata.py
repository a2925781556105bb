"""What an exported file says about itself."""
import json
from typing import Any, Dict, Union

import onnx
import torch
from onnx import ModelProto
from torch import nn

from ..integer import IntegerModel
from ..merge import WeightOnly, merged_layers
from ..version import __version__


def add_metadata(proto: ModelProto, model: Union[IntegerModel, nn.Module],
                 metadata: Dict[str, str]) -> None:
    """Write versions, the bits of every weight and what the caller says.

    Args:
        proto (ModelProto): The file's content.
        model (nn.Module): The integer or the merged model.
        metadata (dict[str, str]): Goes before the rest.
    """
    weights: Dict[str, Any] = model.weights if isinstance(
            model, IntegerModel) else dict(
        merged_layers(model), **{
            name: layer for name, layer in model.named_modules()
            if isinstance(layer, WeightOnly)})
    bits = {name: weight.bits for name, weight in weights.items()}
    onnx.helper.set_model_props(proto, {
        'gdrq_mm': __version__, 'torch': torch.__version__,
        'weight_bits': json.dumps(bits), **metadata})
