"""What an exported file says about itself."""
import json
from typing import Any, Dict, Tuple, Union

import onnx
import torch
from onnx import ModelProto
from torch import nn

from ..integer import IntegerModel
from ..integer.moves import code_range
from ..merge import WeightOnly, merged_layers
from ..version import __version__


def add_metadata(proto: ModelProto, model: Union[IntegerModel, nn.Module],
                 metadata: Dict[str, str]) -> None:
    """Write versions, the bits of every weight and of the codes that every
    layer reads, and what the caller says.

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
    read = {name: (high - low).bit_length()
            for name, (low, high) in _codes_read(model).items()}
    onnx.helper.set_model_props(proto, {
        'gdrq_mm': __version__, 'torch': torch.__version__,
        'weight_bits': json.dumps(bits),
        'activation_bits': json.dumps(read), **metadata})


def _codes_read(model: Union[IntegerModel, nn.Module]
                ) -> Dict[str, Tuple[int, int]]:
    """The least and the greatest code that every layer reads."""
    if not isinstance(model, IntegerModel):
        return {name: (layer.grid.low, layer.grid.high)
                for name, layer in merged_layers(model).items()}
    nodes = {node.name: node for node in model.graph_module.graph.nodes}
    found = {call.layer: code_range(nodes[call.node].args[0])
             for call in model.calls}
    return {name: codes for name, codes in found.items() if codes}
