"""Run a QONNX file in the qonnx package and compare it with PyTorch."""
import warnings
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from ..integer.graph import capture
from .between_check import LayerCall, check_between, difference
from .onnx_file import layer_calls, quant_layers, weights_alone

QONNX_TOLERANCE = 1e-5
PADDING = 8  # its place among the arguments of a merged convolution


def check_qonnx(path: Path, model: nn.Module, example: tuple, report) -> None:
    """Every layer must give what the merged model's gives for its input."""
    proto = onnx.load(str(path))
    report.quant_nodes = sum(node.op_type == 'Quant'
                             for node in proto.graph.node)
    values = run_qonnx(path, example)
    module = capture(model, example)
    layers = list(layer_outputs(proto, model, module, values))
    report.layers = {
        each.name: difference(each.expected, [each.found.numpy()])
        for each in layers}
    outputs = [each.name for each in proto.graph.output]
    report.difference = difference(
        model(*example), [values[name] for name in outputs])
    off = {name: error for name, error in report.layers.items()
           if not error <= QONNX_TOLERANCE}
    if off:
        shown = '\n'.join(f'  {name}: {error:.1e}'
                          for name, error in off.items())
        raise RuntimeError(
            f'the qonnx executor differs from the merged model in {len(off)} '
            f'of {len(report.layers)} layers; nothing was written. Please '
            'report the model, or leave them float, with dict(match=NAME, '
            f'skip=True) in the rules:\n{shown}')
    check_between(module, example, layers, values, outputs)


def layer_outputs(proto: onnx.ModelProto, model: nn.Module,
                  module: GraphModule, values: Dict[str, np.ndarray]
                  ) -> Iterator[LayerCall]:
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
        off = ', '.join(sorted({name for name, *_ in layers} ^ set(calls)))
        raise RuntimeError(
            f'the file has {len(layers)} calls of quantized layers, the model '
            f'{len(calls)}, or of other names: {off}; nothing was written. '
            'Please report the model, or leave these layers float, with rules '
            'that have skip=True')
    for name, source, result in layers:
        node, x = calls[name], torch.from_numpy(values[source])
        arguments = [
            tensors[value.target] if hasattr(value, 'target') else value
            for value in node.args[1:]]
        codes = F.pad(torch.round(x / node.args[2]), extra_padding(
            convolutions.get(name), node))
        expected = node.target(codes, *arguments)
        yield LayerCall(name, node, codes, expected, torch.from_numpy(
            values[result]).view(expected.shape))


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


def outputs_by_place(model: ModelWrapper, example: Sequence[Tensor]
                     ) -> List[np.ndarray]:
    """Outputs of a QONNX model in their order, whatever their names are:
    cleaning up gives inputs and outputs others."""
    # Errors alone: it warns of single nodes that qonnx's executor hands over.
    onnxruntime.set_default_logger_severity(3)
    results = execute_onnx(model, {
        each.name: value.numpy()
        for each, value in zip(model.graph.input, example)})
    return [results[each.name] for each in model.graph.output]
