"""Merged model -> integer model: the reference for every integer runtime."""
from typing import (
    Any,
    Iterable,
    List,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from ..merge import WeightOnly, float_layers, in_float32, merged_layers
from ..merge.grids import QuantParams
from ..merge.ops import OPS
from .graph import (
    LAYERS,
    capture,
    fold_grids,
    is_sum,
    layer_of,
)
from .model import IntegerCall, IntegerModel, shapes_of
from .moves import (
    clamp_range,
    clamped,
    code_range,
    move_codes,
    readers,
    target_of,
)
from .ranges import RANGES, alike, observe, widen_grids
from .weights import IntegerWeight, store_integers

Example = Union[Tensor, Tuple[Any, ...]]


@torch.inference_mode(False)
@torch.no_grad()
def to_integer(model: nn.Module, example: Example,
               calibration: Iterable[Example] = (),
               container: str = 'uint8',
               dynamic: Sequence[str] = ()) -> IntegerModel:
    """Turn a merged model into an integer model.

    The graph is captured by ``torch.export`` for inputs of the shape of the
    example, except for what ``dynamic`` names. Outputs of convolutions that
    more than one quantizer reads, or that float operators read, and the sums
    of such outputs get quantizers of 8 bits with a scale of least squared
    error on ``calibration``, unless the model was trained with theirs
    (``residual`` in :class:`QuantConfig`).

    Args:
        model (nn.Module): What :func:`gdrq_mm.deploy.merge` gave; tensors in
            and out.
        example (Tensor or tuple): What the model is called with.
        calibration (iterable): More such examples, real data. Defaults to
            none: the example alone.
        container (str): How activations are stored: 'uint8' with zero points
            keeps their codes; 'int8' without any, as TensorRT reads, gives
            them up to 8 bits between the ends that they are clipped to.
            Defaults to 'uint8'.
        dynamic (sequence of str): What may differ from the example: 'batch',
            'size' (height and width). Defaults to nothing.

    Returns:
        IntegerModel: In eval mode.

    Raises:
        ValueError: The model has no merged layers, or a container or
            ``dynamic`` is of another name.
        RuntimeError: The model computes with a batch or size of its own.

    Examples:
        >>> import gdrq_mm
        >>> from gdrq_mm.deploy import merge
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> report = gdrq_mm.quantize_(model, dict(
        ...     weight=dict(bits=4), activation=dict(bits=4)))
        >>> images = torch.rand(2, 3, 8, 8)
        >>> gdrq_mm.calibrate(model, [lambda: model(images)])
        1
        >>> integer = to_integer(merge(model, images), images)
        >>> integer(images).shape
        torch.Size([2, 8, 6, 6])
    """
    if container not in RANGES:
        raise ValueError(f'container is {container!r}, allowed: '
                         f'{", ".join(RANGES)}')
    if container == 'int8':
        model = widen_grids(model)
    layers = merged_layers(model)
    plain = {name: layer for name, layer in model.named_modules()
             if isinstance(layer, WeightOnly)}
    if not layers and not plain:
        raise ValueError(
            'the model has no merged layers: convert it with weight bits, '
            'and call gdrq_mm.deploy.merge first')
    example = _as_tuple(example)
    module = capture(model, example, dynamic)
    outputs, sums = find_sites(module)
    grids = observe(
        module, [act for _, act, grid in outputs if grid is None] + sums,
        alike(example, map(_as_tuple, calibration), dynamic),
        RANGES[container])
    weights = {name: IntegerWeight(
        layer.weight, torch.ones(len(layer.weight), dtype=torch.int32),
        layer.bits, layer.weight) for name, layer in plain.items()}
    for name in dict.fromkeys(layer_of(node) for node, _, _ in outputs):
        weights[name] = store_integers(
            name, layers[name], module.get_submodule(name), container)
    calls, added = [], {}
    for node, act, grid in outputs:
        name, kind = layer_of(node), LAYERS[target_of(node)]
        call = IntegerCall(node.name, name, kind, grid, False)
        if grid is None and kind == 'conv2d':
            call.grid, call.added = clamped(grids[act], act), True
        calls.append(call)
        _replace_layer(module, node, act, call)
    for node in sums:
        added[node.name] = grids[node]
        _round(module, node, grids[node])
    _finish(module)
    return IntegerModel(module, calls, weights, added, float_layers(model),
                        container, dynamic, shapes_of(example))


def _as_tuple(example: Example) -> tuple:
    return in_float32(
        example if isinstance(example, tuple) else (example, ))


def find_sites(module: GraphModule
               ) -> Tuple[List[Tuple[Node, Node, Optional[QuantParams]]],
                          List[Node]]:
    """Where layers and sums give their codes.

    Returns:
        tuple: For every call of a layer its node, the node of its activation
        (the last of the clamps behind it) and the grid of the one quantizer
        that reads it, or None; the nodes of sums that need a grid.
    """
    outputs, sums = [], []
    for node in module.graph.nodes:
        if target_of(node) in LAYERS:
            act = _activation(node)
            outputs.append((node, act, _only_grid(act)))
        elif is_sum(node):
            act = _activation(node)
            if _only_grid(act) is None:
                sums.append(act)
    return outputs, sums


def _activation(node: Node) -> Node:
    users = readers(node)
    while len(users) == 1 and clamp_range(users[0]):
        node = users[0]
        users = readers(node)
    return node


def _only_grid(act: Node) -> Optional[QuantParams]:
    """The grid of the quantizer that alone reads ``act``."""
    users = readers(act)
    if len(users) != 1 or target_of(users[0]) is not OPS.quantize.default:
        return None
    grid = QuantParams(*users[0].args[1:])
    left = clamped(grid, act)
    # A signed quantizer would undo the ReLU that its codes stand for.
    return left if left.low == grid.low else None


def _replace_layer(module: GraphModule, node: Node, act: Node,
                   call: IntegerCall) -> None:
    """Merged layer (and ReLU, and quantizer) -> one integer operator."""
    codes, weight, x_scale, w_scale, bias, low, _, *rest = node.args
    rest = [*rest[:-1], module.get_submodule(call.layer).wide]
    graph, grid = module.graph, call.grid
    head = codes, weight, x_scale, w_scale, bias, low
    with graph.inserting_before(node):
        if grid is None:
            new = graph.call_function(
                OPS.integer_linear_float.default, (*head, *rest))
        else:
            target = getattr(OPS, f'integer_{call.kind}').default
            new = graph.call_function(
                target, (*head, grid.scale, grid.low, grid.high, *rest))
        value = new
        if call.added:
            value = graph.call_function(
                OPS.dequantize.default, (new, grid.scale, grid.low))
    call.node = new.name
    if grid is None:
        node.replace_all_uses_with(new)
        return
    for user in [act] if call.added else readers(act):
        user.replace_all_uses_with(value)


def _round(module: GraphModule, node: Node, grid: QuantParams) -> None:
    """Insert a quantizer behind a node."""
    graph = module.graph
    with graph.inserting_after(node):
        codes = graph.call_function(OPS.quantize.default, (
            node, grid.scale, grid.low, grid.high))
    with graph.inserting_after(codes):
        value = graph.call_function(
            OPS.dequantize.default, (codes, grid.scale, grid.low))
    node.replace_all_uses_with(
        value, delete_user_cb=lambda user: user is not codes)


def _finish(module: GraphModule) -> None:
    """Let operators that stay on the grid work on codes; clean up."""
    graph = module.graph
    for node in list(graph.nodes):
        bounds = clamp_range(node)
        if not bounds or target_of(
                node.args[0]) is not OPS.dequantize.default:
            continue
        codes, scale, low = node.args[0].args
        there = code_range(codes)
        if there and QuantParams(scale, *there) == clamped(
                QuantParams(scale, *there), node):
            node.replace_all_uses_with(node.args[0])
    move_codes(graph)
    fold_grids(graph)
    graph.lint()
    module.recompile()
