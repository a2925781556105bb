"""Operators that move values but make no new ones: codes pass them."""
import operator
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch.fx import Graph, Node

from ..merge.grids import QuantParams
from ..merge.ops import OPS

_aten = torch.ops.aten
MOVES = {getattr(getattr(_aten, name), overload) for name, overload in (
    ('max_pool2d', 'default'), ('upsample_nearest2d', 'vec'),
    ('view', 'default'), ('_unsafe_view', 'default'),
    ('reshape', 'default'), ('flatten', 'using_ints'), ('unflatten', 'int'),
    ('permute', 'default'), ('transpose', 'int'),
    ('slice', 'Tensor'), ('select', 'int'), ('expand', 'default'),
    ('unsqueeze', 'default'), ('squeeze', 'default'), ('squeeze', 'dim'),
    ('squeeze', 'dims'), ('flip', 'default'), ('roll', 'default'),
    ('clone', 'default'), ('contiguous', 'default'), ('repeat', 'default'),
    ('channel_shuffle', 'default'), ('pixel_shuffle', 'default'),
    ('pixel_unshuffle', 'default'), ('index', 'Tensor'),
    ('index_select', 'default'), ('gather', 'default'),
    ('take_along_dim', 'default'))}
JOINS = {_aten.cat.default, _aten.stack.default}
SPLITS = {_aten.split.Tensor, _aten.split_with_sizes.default,
          _aten.chunk.default}
QUANTIZE, DEQUANTIZE = OPS.quantize.default, OPS.dequantize.default
_INTEGER = {OPS.integer_conv2d.default, OPS.integer_linear.default}


def target_of(node: Any) -> Any:
    """The operator that a node calls; None for other nodes."""
    return node.target if isinstance(node, Node) and \
        node.op == 'call_function' else None


def readers(node: Node) -> List[Node]:
    """What reads the values of a node, not only its sizes."""
    return [user for user in node.users
            if target_of(user) is not _aten.sym_size.int]


def moved_from(node: Node) -> List[Node]:
    """The tensors whose values a node moves; none if it makes new ones."""
    target = target_of(node)
    if target in MOVES or target in SPLITS:
        return [node.args[0]]
    if target is operator.getitem and target_of(node.args[0]) in SPLITS:
        return [node.args[0]]
    if target in JOINS:
        return list(node.args[0])
    if target is _aten.pad.default:
        mode, value = (*node.args[2:], *('constant', None)[len(
            node.args) - 2:])[:2]
        return [node.args[0]] if mode != 'constant' or not value else []
    return []


def clamp_range(node: Node) -> Optional[Tuple[float, float]]:
    """Least and greatest value that an activation lets through; None for
    other operators."""
    target, infinity = target_of(node), float('inf')
    if target is _aten.relu.default:
        return 0., infinity
    if target is _aten.relu6.default:
        return 0., 6.
    if target is _aten.hardtanh.default:
        low, high = tuple(node.args[1:]) + (-1., 1.)[len(node.args) - 1:]
    elif target is _aten.clamp.default:
        low, high = tuple(node.args[1:]) + (None, None)[len(node.args) - 1:]
    elif target is _aten.clamp_min.default:
        low, high = node.args[1], None
    elif target is _aten.clamp_max.default:
        low, high = None, node.args[1]
    else:
        return None
    low = -infinity if low is None else low
    high = infinity if high is None else high
    if isinstance(low, Node) or isinstance(high, Node) or low > 0 or high < 0:
        return None
    return float(low), float(high)


def clamped(grid: QuantParams, act: Node) -> QuantParams:
    """The codes of ``grid`` that are left behind an activation, or several.

    Rounding is monotonic: what is clamped before has the codes of what is
    clamped after, between the codes of the two ends.
    """
    bounds = clamp_range(act)
    while bounds is not None:
        low, high = grid.quantize(torch.tensor(bounds)).tolist()
        grid = QuantParams(grid.scale, int(low), int(high))
        act = act.args[0]
        bounds = clamp_range(act)
    return grid


def code_range(codes: Node) -> Optional[Tuple[int, int]]:
    """The least and the greatest code that a node gives, None if it gives no
    codes."""
    target = target_of(codes)
    if target is QUANTIZE:
        return codes.args[2:4]
    if target in _INTEGER:
        return codes.args[7:9]
    if target is OPS.pad_codes.default:
        return code_range(codes.args[0])
    ranges = [code_range(source) for source in moved_from(codes)]
    if not ranges or None in ranges:
        return None
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def hoist_grids(graph: Graph) -> None:
    """Quantize before operators that only move values, where nothing else
    reads those: a convolution then gives the codes itself."""
    waiting = [node for node in graph.nodes if target_of(node) is QUANTIZE]
    while waiting:
        node = waiting.pop()
        moved = node.args[0]
        sources = moved_from(moved)
        if not sources or readers(moved) != [node] or \
                target_of(moved) in SPLITS or target_of(moved) is \
                operator.getitem or not any(
                    readers(source) == [moved] for source in sources):
            continue
        codes = {}
        for source in dict.fromkeys(sources):
            with graph.inserting_before(moved):
                codes[source] = graph.call_function(
                    QUANTIZE, (source, *node.args[1:]))
        for source, each in codes.items():
            moved.replace_input_with(source, each)
        node.replace_all_uses_with(moved)
        graph.erase_node(node)
        waiting += codes.values()


def move_codes(graph: Graph) -> None:
    """Let operators that only move values work on codes."""
    splits: Dict[Node, Node] = {}  # of values -> of codes
    for node in list(graph.nodes):
        sources = moved_from(node)
        if not sources or target_of(node) in SPLITS:
            continue
        if target_of(node) is operator.getitem:
            _move_split(graph, node, splits)
            continue
        if any(target_of(source) is not DEQUANTIZE for source in sources) \
                or len({source.args[1:] for source in sources}) > 1:
            continue
        scale, low = sources[0].args[1:]
        with graph.inserting_before(node):
            first = [source.args[0] for source in sources]
            moved = graph.call_function(
                node.target, (first if isinstance(node.args[0], (
                    list, tuple)) else first[0], *node.args[1:]),
                node.kwargs)
            value = graph.call_function(DEQUANTIZE, (moved, scale, low))
        node.replace_all_uses_with(value)
    _pad_codes(graph)


def _move_split(graph: Graph, part: Node, splits: Dict[Node, Node]) -> None:
    split = part.args[0]
    source = split.args[0]
    if target_of(source) is not DEQUANTIZE:
        return
    codes, scale, low = source.args
    if split not in splits:
        with graph.inserting_before(split):
            splits[split] = graph.call_function(
                split.target, (codes, *split.args[1:]), split.kwargs)
    with graph.inserting_before(part):
        piece = graph.call_function(operator.getitem, (
            splits[split], part.args[1]))
        value = graph.call_function(DEQUANTIZE, (piece, scale, low))
    part.replace_all_uses_with(value)


def _pad_codes(graph: Graph) -> None:
    """Codes are padded with the code of zero, which files store shifted."""
    for node in list(graph.nodes):
        if target_of(node) is not _aten.pad.default or not moved_from(
                node) or 'constant' not in (*node.args[2:3], *[
                    'constant'][len(node.args) - 2:]):
            continue
        codes = code_range(node.args[0])
        if codes is not None:
            with graph.inserting_before(node):
                padded = graph.call_function(OPS.pad_codes.default, (
                    node.args[0], list(node.args[1]), codes[0]))
            node.replace_all_uses_with(padded)
