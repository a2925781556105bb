"""The graph of a merged model, as ``torch.export`` captures it."""
from typing import Any, Tuple

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from .ops import OPS

_aten = torch.ops.aten
LAYERS = {OPS.conv2d.default: 'conv2d', OPS.linear.default: 'linear'}
RELUS = (_aten.relu.default, )
# The values that come out are among those that went in.
SAME_GRID = (_aten.max_pool2d.default, _aten.upsample_nearest2d.vec)


def target_of(node: Node) -> Any:
    """The operator that a node calls; None for other nodes."""
    return node.target if node.op == 'call_function' else None


def capture(model: nn.Module, example: Tuple[Any, ...]) -> GraphModule:
    """Capture what a merged model computes for inputs of fixed shape.

    Args:
        model (nn.Module): A merged model.
        example (tuple): What it is called with.

    Returns:
        GraphModule: Quantizers and merged layers are single nodes; equal
        quantizers of one tensor are one node.
    """
    program = torch.export.export(model, example, strict=False)
    module = program.run_decompositions({}).module(check_guards=False)
    for part in module.modules():  # eval() is refused here
        part.training = False
    fold_grids(module.graph)
    _hoist_grids(module.graph)
    module.recompile()
    return module


def _hoist_grids(graph: Graph) -> None:
    """Quantize before operators that only choose among values, where nothing
    else reads those: a convolution then gives the codes itself."""
    for node in reversed(list(graph.nodes)):
        if target_of(node) is not OPS.quantize.default:
            continue
        chosen = node.args[0]
        while target_of(chosen) in SAME_GRID and len(chosen.users) == 1 \
                and len(chosen.args[0].users) == 1:
            with graph.inserting_before(chosen):
                codes = graph.call_function(
                    node.target, (chosen.args[0], *node.args[1:]))
            chosen.replace_input_with(chosen.args[0], codes)
            node.replace_all_uses_with(chosen)
            graph.erase_node(node)
            node, chosen = codes, codes.args[0]


def fold_grids(graph: Graph) -> None:
    """Drop quantizers that change nothing and those that are there twice."""
    seen = {}
    for node in list(graph.nodes):
        if target_of(node) is not OPS.quantize.default:
            continue
        source, *grid = node.args
        if target_of(source) is OPS.dequantize.default and source.args[
                1:] == (grid[0], grid[1]) and _high(source.args[0]) == grid[2]:
            node.replace_all_uses_with(source.args[0])
        elif node.args in seen:
            node.replace_all_uses_with(seen[node.args])
        else:
            seen[node.args] = node
    graph.eliminate_dead_code()


def _high(codes: Node) -> Any:
    """The greatest code that a node gives."""
    target = target_of(codes)
    if target is OPS.quantize.default:
        return codes.args[3]
    if target in (OPS.integer_conv2d.default, OPS.integer_linear.default):
        return codes.args[8]
    return _high(codes.args[0]) if target in SAME_GRID else None


def is_sum(node: Node) -> bool:
    """Whether a node adds two activations that layers gave."""
    return (target_of(node) is _aten.add.Tensor
            and node.kwargs.get('alpha', 1) == 1
            and all(_from_layer(value) for value in node.args[:2]))


def _from_layer(value: Any) -> bool:
    if not isinstance(value, Node):
        return False
    target = target_of(value)
    if target in LAYERS or target is OPS.dequantize.default:
        return True
    if target in (*RELUS, *SAME_GRID):
        return _from_layer(value.args[0])
    return is_sum(value)
