"""Load an exported file and compare what it computes with PyTorch."""
import tempfile
import warnings
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnxruntime.capi import onnxruntime_pybind11_state
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_flatten

from ..integer import IntegerModel
from ..integer.graph import capture
from .onnx_file import (
    layer_calls,
    layer_nodes,
    quant_layers,
    weights_alone,
)

# What ONNX Runtime calls them in its optimised graph.
INTEGER_KERNELS = ('QLinearConv', 'QGemm')
EQUAL_CODES = 0.99999  # the least share, of every file
QONNX_TOLERANCE = 1e-5
PADDING = 8  # its place among the arguments of a merged convolution
FLOAT_TOLERANCE = 1e-3  # of whole networks whose layers compute in float
RUNTIME_ERRORS = (onnxruntime_pybind11_state.NotImplemented,
                  onnxruntime_pybind11_state.InvalidGraph,
                  onnxruntime_pybind11_state.Fail)


def session(path: Path, threads: int = 1, **options
            ) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU, all optimisations on.

    Args:
        path (Path): The file.
        threads (int): Within an operator. Defaults to 1.
        **options: Attributes of ``onnxruntime.SessionOptions``.
    """
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = \
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    for name, value in options.items():
        setattr(settings, name, value)
    return onnxruntime.InferenceSession(
        str(path), settings, providers=['CPUExecutionProvider'])


def run(runner: onnxruntime.InferenceSession, args: Sequence[Tensor]
        ) -> List[np.ndarray]:
    """All outputs of a session."""
    names = [each.name for each in runner.get_inputs()]
    return runner.run(None, {name: value.numpy()
                             for name, value in zip(names, args)})


def kernels(path: Path) -> Dict[str, str]:
    """The operator that ONNX Runtime runs for every call of a layer.

    Args:
        path (Path): A QDQ file.

    Returns:
        dict[str, str]: By the name of the call, as in the file.
    """
    calls = [each.node.name for each in layer_nodes(onnx.load(str(path)))]
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / 'optimised.onnx'
        session(path, optimized_model_filepath=str(optimised))
        nodes = onnx.load(str(optimised)).graph.node
    found = {node.name.partition('_token_')[0]: node.op_type
             for node in nodes}
    return {call: found.get(call, 'nothing of this name') for call in calls}


def check_qdq(path: Path, model: IntegerModel, example: tuple, report
              ) -> None:
    """Every layer must run as an integer kernel and give equal codes."""
    try:
        report.kernels = kernels(path)
    except RUNTIME_ERRORS as error:
        raise RuntimeError('ONNX Runtime cannot load the file; nothing was '
                           f'written: {error}') from error
    floats = {call: kind for call, kind in report.kernels.items()
              if kind not in INTEGER_KERNELS}
    if len(report.kernels) != len(model.calls):
        raise RuntimeError(
            f'the file has {len(report.kernels)} calls of quantized layers, '
            f'the model {len(model.calls)}; nothing was written')
    if floats:
        shown = '\n'.join(f'  {call}: {kind}'
                          for call, kind in floats.items())
        raise RuntimeError(
            f'ONNX Runtime would run {len(floats)} of {len(model.calls)} '
            f'quantized layers in float; nothing was written:\n{shown}')
    report.codes = equal_codes(path, model, example)
    equal, total = report.equal_codes()
    if equal < EQUAL_CODES * total:
        worst = min(report.codes, key=lambda call: report.codes[call][0]
                    / max(report.codes[call][1], 1))
        raise RuntimeError(
            f'only {equal} of {total} codes equal the integer model, given '
            f'the same input codes; the worst layer is {worst} '
            f'{report.codes[worst]}. Nothing was written.')
    report.difference = difference(
        model(*example), run(session(path), example))
    if not model.calls and report.difference > FLOAT_TOLERANCE:
        raise RuntimeError(
            f'outputs differ by {report.difference:.1e} from those of the '
            'model, which computes in float; nothing was written')


def equal_codes(path: Path, model: IntegerModel, example: tuple) -> dict:
    """Compare every layer of a QDQ file with the integer model.

    Each layer of the integer model gets the very codes that ONNX Runtime's
    layer read.

    Returns:
        dict[str, tuple[int, int]]: By call: equal codes, all codes. Float
        outputs count as equal where they are within 1e-5 of the greatest.
    """
    proto = onnx.load(str(path))
    calls = list(layer_nodes(proto))
    outputs = {each.name for each in proto.graph.output}
    for each in calls:
        for name in (each.source, each.result):
            if name not in outputs:
                outputs.add(name)
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
    with tempfile.TemporaryDirectory() as folder:
        opened = Path(folder) / 'opened.onnx'
        onnx.save(proto, str(opened))
        runner = session(opened)
    names = [each.name for each in runner.get_outputs()]
    values = dict(zip(names, run(runner, example)))
    nodes = {node.name: node for node in model.graph_module.graph.nodes}
    tensors = model.graph_module.state_dict()
    counts = {}
    for each, call in zip(calls, model.calls):
        node = nodes[call.node]
        low = node.args[5]
        codes = torch.from_numpy(values[each.source]).float() + low
        arguments = [
            tensors[value.target] if hasattr(value, 'target') else value
            for value in node.args[1:]]
        expected = node.target(codes, *arguments)
        result = torch.from_numpy(values[each.result])
        if call.grid is None:
            same = (result - expected).abs() <= 1e-5 * expected.abs().max()
        else:
            same = result.float().view(
                expected.shape) + call.grid.low == expected
        counts[each.node.name] = int(same.sum()), same.numel()
    return counts


def difference(expected, results: Sequence[np.ndarray]) -> float:
    """Greatest difference of outputs, relative to their greatest values; of
    integers the share that differs."""
    greatest = 0.
    for ours, theirs in zip(tree_flatten(expected)[0], results):
        theirs = torch.from_numpy(theirs)
        if not ours.is_floating_point():  # labels: the share that differs
            greatest = max(greatest, float((ours != theirs).float().mean()))
        elif ours.numel():
            ours, theirs = ours.double(), theirs.double()
            greatest = max(greatest, float(
                (ours - theirs).abs().max() / ours.abs().max().clamp(1e-30)))
    return greatest


def check_qonnx(path: Path, model: nn.Module, example: tuple, report) -> None:
    """Every layer must give what the merged model's gives for its input."""
    proto = onnx.load(str(path))
    report.quant_nodes = sum(node.op_type == 'Quant'
                             for node in proto.graph.node)
    values = run_qonnx(path, example)
    report.layers = layer_differences(proto, model, example, values)
    report.difference = difference(
        model(*example), [values[each.name] for each in proto.graph.output])
    off = {name: error for name, error in report.layers.items()
           if not error <= QONNX_TOLERANCE}
    if off:
        shown = '\n'.join(f'  {name}: {error:.1e}'
                          for name, error in off.items())
        raise RuntimeError(
            f'the qonnx executor differs from the merged model in {len(off)} '
            f'of {len(report.layers)} layers; nothing was written:\n{shown}')


def layer_differences(proto: onnx.ModelProto, model: nn.Module,
                      example: tuple, values: Dict[str, np.ndarray]
                      ) -> Dict[str, float]:
    """Compare every layer of a QONNX file with the merged model.

    Args:
        values (dict[str, ndarray]): All tensors, from :func:`run_qonnx`.

    Returns:
        dict[str, float]: By call: the greatest difference, relative to the
        greatest value.
    """
    return {each.name: difference(each.expected, [each.found.numpy()])
            for each in layer_outputs(proto, model, capture(model, example),
                                      values)}


class LayerOutput(NamedTuple):
    """What a call of a layer gives in the merged model and in a file.

    Args:
        name (str): Of the call, as in the file.
        node (Node): The call in the graph of the merged model.
        expected (Tensor): Of the merged model's layer, which gets the very
            input that the file's layer had.
        found (Tensor): Of the file's layer.
    """
    name: str
    node: Node
    expected: Tensor
    found: Tensor


def layer_outputs(proto: onnx.ModelProto, model: nn.Module,
                  module: GraphModule, values: Dict[str, np.ndarray]
                  ) -> Iterator[LayerOutput]:
    """Both outputs of every call of a quantized layer in a QONNX file.

    Args:
        proto (ModelProto): The file.
        model (nn.Module): The merged model.
        module (GraphModule): Its graph.
        values (dict[str, ndarray]): All tensors, from :func:`run_qonnx`.

    Raises:
        RuntimeError: The file has other calls than the model.
    """
    tensors, calls = module.state_dict(), layer_calls(module)
    layers = list(quant_layers(proto, weights_alone(model)))
    convolutions = {each.name: each for each in proto.graph.node
                    if each.op_type == 'Conv'}
    if sorted(calls) != sorted(name for name, *_ in layers):
        raise RuntimeError(
            f'the file has {len(layers)} calls of quantized layers, the model '
            f'{len(calls)}, or of other names')
    for name, source, result in layers:
        node, x = calls[name], torch.from_numpy(values[source])
        arguments = [
            tensors[value.target] if hasattr(value, 'target') else value
            for value in node.args[1:]]
        codes = F.pad(torch.round(x / node.args[2]), extra_padding(
            convolutions.get(name), node))
        yield LayerOutput(name, node, node.target(codes, *arguments),
                          torch.from_numpy(values[result]))


def extra_padding(convolution: Optional[onnx.NodeProto], node: Node
                  ) -> List[int]:
    """What a convolution in a file pads more than its node in the graph,
    since the exporter made one of it and of a padding before it."""
    if convolution is None:
        return []
    top, left, bottom, right = next(
        each.ints for each in convolution.attribute if each.name == 'pads')
    height, width = node.args[PADDING]
    return [left - width, right - width, top - height, bottom - height]


def run_qonnx(path: Path, args: Sequence[Tensor]) -> Dict[str, np.ndarray]:
    """All tensors of a QONNX file, run by the qonnx package's executor."""
    model = ModelWrapper(str(path))
    names = [each.name for each in model.graph.input]
    with warnings.catch_warnings():
        # NMS gives as many rows as it keeps, which no shape says beforehand.
        warnings.filterwarnings('ignore', 'Output shapes disagree')
        return execute_onnx(model, {name: value.numpy()
                                    for name, value in zip(names, args)},
                            return_full_exec_context=True)
