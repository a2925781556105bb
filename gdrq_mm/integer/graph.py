"""The graph of a merged model, as ``torch.export`` captures it."""
import operator
from typing import Any, Dict, List, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from ..merge.ops import OPS
from .dynamic import (
    check_dynamic,
    check_least,
    check_others,
    checked_examples,
    dynamic_shapes,
    traced_example,
)
from .failures import failing_layer, own_kernel
from .first_names import use_first_names
from .moves import clamp_range, code_range, hoist_grids, moved_from, target_of

_aten = torch.ops.aten
LAYERS = {OPS.conv2d.default: 'conv2d', OPS.linear.default: 'linear'}


class NoGraph(RuntimeError):
    """Raised by a model while it is captured: why it has no graph, and what
    to do."""


def capture(model: nn.Module, example: Tuple[Any, ...],
            dynamic: Sequence[str] = ()) -> GraphModule:
    """Capture what a merged model computes for inputs of such shapes.

    Args:
        model (nn.Module): A merged model.
        example (tuple): What it is called with.
        dynamic (sequence of str): What may differ from the example: 'batch',
            'size'. Defaults to nothing.

    Returns:
        GraphModule: Quantizers and merged layers are single nodes; what
        computes the same from the same is one node, the first. Modules that
        are registered twice go by their first name, as in
        ``named_modules()``.

    Raises:
        ValueError: ``dynamic`` does not fit the inputs.
        RuntimeError: torch has no graph of the model, such as of one that
            computes with a batch or size of its own, or none for images as
            small as the example; or it writes to its input; or the graph
            gives other outputs for other batches and sizes.
    """
    check_dynamic(dynamic, example)
    program = exported(model, example, dynamic)
    if 'size' in dynamic:
        check_least(program, example)
    program = program.run_decompositions({})
    changed = program.graph_signature.user_inputs_to_mutate.values()
    if changed:
        raise RuntimeError(
            f'the model changes its input in place ({", ".join(changed)}), '
            'which no file does: compute a new tensor (x = x - mean, not '
            'x -= mean)')
    module = program.module(check_guards=False)
    _as_any_module(module)
    use_first_names(module, model)
    _free_of_strides(module)
    _fold_equal(module)
    fold_grids(module.graph)
    hoist_grids(module.graph)
    module.recompile()
    check_others(module, model, checked_examples(dynamic, example))
    return module


def exported(model: nn.Module, example: Tuple[Any, ...],
             dynamic: Sequence[str] = ()) -> torch.export.ExportedProgram:
    """What ``torch.export`` makes of a model, see :func:`capture`."""
    traced = traced_example(dynamic, example)
    try:
        program = torch.export.export(
            model, traced, dynamic_shapes=dynamic_shapes(
                dynamic, model, traced), strict=False)
    except NoGraph:
        raise
    except Exception as error:  # whatever torch raises
        reason = str(error).strip().splitlines() or [type(error).__name__]
        graph, remedy = 'no graph', (
            'wrap the model in a module that leaves it out, or, where it is '
            'post-processing, export what comes before it (--raw, or '
            'make_deployable(..., raw=True))')
        if dynamic:
            graph = f'no graph with dynamic {" and ".join(dynamic)}'
            remedy = 'export it with a fixed one'
        kernel = own_kernel(error)
        if kernel:
            reason, remedy = [f'{kernel} is a kernel that no graph holds'], (
                'train with a layer of torch in its place, or export a module '
                'without it with gdrq_mm.deploy.export_onnx')
        raise RuntimeError(
            f'the model has {graph}: {failing_layer(error, model)}'
            f'{reason[0]}; {remedy}') from error
    _spell_out(program.graph_module)
    return program


def _as_any_module(module: GraphModule) -> None:
    """In eval mode; torch's own refuses to be asked for it, and has hooks for
    inputs that are modules, which cannot be pickled."""
    for part in module.modules():
        part.training = False
    for refused in ('train', 'eval', '_tracer_cls'):
        module.__dict__.pop(refused, None)
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items()
                    if '<locals>' in hook.__qualname__]:
            del hooks[key]


def layer_of(node: Node) -> str:
    """Name of the layer that a node of :data:`LAYERS` calls."""
    return node.args[1].target.rpartition('.')[0]


def _spell_out(module: GraphModule) -> None:
    """Say what torch's own decompositions and its exporter stumble over
    otherwise: how ``torch.meshgrid`` indexes ('ij' without a word), that both
    ends of a clamp are float where one is, that attention without heads, or
    without a batch, has one of them, and that pooling to one pixel is a mean
    (of channels that come last, torch would make a gather by address)."""
    for node in module.graph.nodes:
        if target_of(node) is _aten.meshgrid.default:
            node.target, node.kwargs = _aten.meshgrid.indexing, dict(
                indexing='ij')
        elif target_of(node) is _aten.clamp.default and any(
                isinstance(each, float) for each in node.args):
            node.args = tuple(float(each) if isinstance(each, int) else each
                              for each in node.args)
        elif target_of(node) is _aten.adaptive_avg_pool2d.default and \
                all(size == 1 for size in node.args[1]):
            node.target = _aten.mean.dim
            node.args = node.args[0], [-2, -1], True
        elif target_of(node) is _aten.scaled_dot_product_attention.default:
            _add_heads(node)
    module.recompile()


def _add_heads(node: Node) -> None:
    """Four dimensions for queries, keys and values; a mask broadcasts."""
    stack = node.meta.get('nn_module_stack')

    def called(operator: OpOverload, source: Node) -> Node:
        new = node.graph.call_function(operator, (source, 0))
        new.meta['nn_module_stack'] = stack
        return new

    inputs, result = list(node.args[:3]), node
    for _ in range(4 - node.meta['val'].dim()):
        with node.graph.inserting_before(node):
            inputs = [called(_aten.unsqueeze.default, each)
                      for each in inputs]
        with node.graph.inserting_after(result):
            after = called(_aten.squeeze.dim, result)
        result.replace_all_uses_with(
            after, delete_user_cb=lambda user, after=after: user is not after)
        result = after
    node.args = (*inputs, *node.args[3:])


def _free_of_strides(module: GraphModule) -> None:
    """Views become reshapes: whether one will do is known of the strides of
    the trace alone, which kernels need not keep (channels last, say)."""
    for node in module.graph.nodes:
        if target_of(node) in (_aten.view.default, _aten._unsafe_view.default):
            node.target = _aten.reshape.default


def _fold_equal(module: GraphModule) -> None:
    """Compute the same but once, layers of equal weights included.

    The exporter does so, whatever the layers are called; calls would then
    be missing in its file.
    """
    written = {arg.target for node in module.graph.nodes if _is_mutable(node)
               for arg in node.all_input_nodes if arg.op == 'get_attr'}
    first: Dict[tuple, Node] = {}
    tensors: Dict[tuple, List[Tensor]] = {}
    values: Dict[Node, Any] = {}

    def same_tensor(node):
        tensor = operator.attrgetter(node.target)(module)
        if not isinstance(tensor, Tensor) or node.target in written:
            return node.target
        kind = tensor.dtype, tensor.device, tensor.shape
        known = tensors.setdefault(kind, [])
        for number, other in enumerate(known):
            if tensor is other or torch.equal(tensor, other):
                return kind, number
        known.append(tensor)
        return kind, len(known) - 1

    for node in list(module.graph.nodes):
        values[node] = node.name
        if node.op == 'get_attr':
            values[node] = same_tensor(node)
        elif _is_function(node):
            key = node.target, repr(map_arg(
                (node.args, node.kwargs), lambda arg: (values[arg], )))
            if key in first:
                node.replace_all_uses_with(first[key])
                values[node] = first[key].name
            first.setdefault(key, node)
    module.graph.eliminate_dead_code()


def _is_mutable(node: Node) -> bool:
    target = target_of(node)
    return isinstance(target, OpOverload) and target._schema.is_mutable


def _is_function(node: Node) -> bool:
    """Whether a node gives the same whenever it is given the same."""
    target = target_of(node)
    return target is operator.getitem or (
        isinstance(target, OpOverload) and not _is_mutable(node)
        and torch.Tag.nondeterministic_seeded not in target.tags)


def fold_grids(graph: Graph) -> None:
    """Drop quantizers that change nothing and those that are there twice."""
    seen = {}
    for node in list(graph.nodes):
        if target_of(node) is not OPS.quantize.default:
            continue
        source, *grid = node.args
        if target_of(source) is OPS.dequantize.default and source.args[
                1:] == (grid[0], grid[1]) and _fits(source.args[0], grid[2]):
            node.replace_all_uses_with(source.args[0])
        elif node.args in seen:
            node.replace_all_uses_with(seen[node.args])
        else:
            seen[node.args] = node
    graph.eliminate_dead_code()


def _fits(codes: Node, high: int) -> bool:
    """Whether no code of a node is above ``high``."""
    there = code_range(codes)
    return there is not None and there[1] <= high


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
    sources = moved_from(value) or (
        [value.args[0]] if clamp_range(value) else [])
    return all(map(_from_layer, sources)) if sources else is_sum(value)
