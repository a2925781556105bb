"""What :func:`gdrq_mm.deploy.to_integer` gives."""
import hashlib
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from ..merge.grids import QuantParams
from .weights import IntegerWeight


@dataclass
class IntegerCall:
    """One call of a quantized layer in an integer model.

    Args:
        node (str): Name of its node in the graph.
        layer (str): Name of the layer in the model.
        kind (str): 'conv2d' or 'linear'.
        grid (QuantParams, optional): Grid of the codes that come out; None:
            float values come out (linear layers).
        added (bool): Whether this grid was added by the 8-bit completion.
    """
    node: str
    layer: str
    kind: str
    grid: Optional[QuantParams]
    added: bool


class IntegerModel(nn.Module):
    """A model whose quantized layers compute as integer kernels do.

    Layers read codes and give codes; accumulators are int32 sums, biases
    integers, and outputs that are read by more than one quantizer are rounded
    to 8 bits (residual sums as well). Float operators between layers stay.

    Attributes:
        graph_module (GraphModule): The computation.
        calls (list[IntegerCall]): Calls of quantized layers, in order.
        weights (dict[str, IntegerWeight]): By layer, those of layers that
            compute in float included.
        sums (dict[str, QuantParams]): 8-bit grids of sums, by node.
        float_layers (dict[str, str]): Layers that compute in float, and why.
        container (str): What holds codes of activations: 'uint8' with zero
            points, or 'int8'.
        dynamic (tuple[str]): What may differ from the example: 'batch',
            'size'.
        shapes (list[tuple]): Those of the inputs that it was made with.
    """

    def __init__(self, graph_module: GraphModule, calls: List[IntegerCall],
                 weights: Dict[str, IntegerWeight],
                 sums: Dict[str, QuantParams],
                 float_layers: Dict[str, str], container: str,
                 dynamic: Sequence[str], shapes: Sequence[tuple]) -> None:
        super().__init__()
        self.graph_module = graph_module
        self.calls = calls
        self.weights = weights
        self.sums = sums
        self.float_layers = float_layers
        self.container = container
        self.dynamic = tuple(dynamic)
        self.shapes = list(shapes)

    def forward(self, *args):
        self.check_inputs(args)
        return self.graph_module(*args)

    def check_inputs(self, args: Sequence[Any]) -> None:
        """Raise a ValueError where the graph is of other shapes."""
        given = shapes_of(args)
        if not self.dynamic and given != self.shapes:
            raise ValueError(
                'the integer model computes with inputs of the shapes '
                f'{self.shapes}, got {given}: give the same, or make it with '
                "to_integer(..., dynamic=['batch', 'size'])")

    def get_extra_state(self) -> Tensor:
        """What a state dict is of: scales are numbers in the graph."""
        nodes = [(str(node.target),
                  [each for each in tree_leaves((node.args, node.kwargs))
                   if isinstance(each, (bool, int, float))])
                 for node in self.graph_module.graph.nodes
                 if node.op == 'call_function']
        digest = hashlib.sha256(repr(nodes).encode()).digest()
        return torch.tensor(list(digest), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        if not torch.equal(state.cpu(), self.get_extra_state()):
            raise ValueError(
                'the state dict is of another integer model, whose scales '
                'are in its graph: make this one of the same merged model '
                'and calibration, or save the whole model with torch.save')


def shapes_of(args: Sequence[Any]) -> List[tuple]:
    """Shapes of the tensors among inputs."""
    return [tuple(x.shape) for x in args if isinstance(x, Tensor)]
