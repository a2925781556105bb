"""Load an exported file and compare what it computes with PyTorch."""
import tempfile
from pathlib import Path
from typing import Dict, List, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .integer import IntegerModel
from .onnx_file import layer_nodes

# What ONNX Runtime calls them in its optimised graph.
INTEGER_KERNELS = ('QLinearConv', 'QGemm')


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
    report.kernels = kernels(path)
    floats = {call: kind for call, kind in report.kernels.items()
              if kind not in INTEGER_KERNELS}
    if floats or len(report.kernels) != len(model.calls):
        shown = '\n'.join(f'  {call}: {kind}'
                          for call, kind in floats.items())
        raise RuntimeError(
            f'ONNX Runtime would run {len(floats)} of {len(model.calls)} '
            f'quantized layers in float; nothing was written:\n{shown}')
    report.codes = equal_codes(path, model, example)
    report.difference = difference(
        model(*example), run(session(path), example))


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
    """Greatest difference of outputs, relative to their greatest values."""
    greatest = 0.
    for ours, theirs in zip(tree_leaves(expected), results):
        ours, theirs = ours.double(), torch.from_numpy(theirs).double()
        if ours.numel():
            greatest = max(greatest, float(
                (ours - theirs).abs().max() / ours.abs().max().clamp(1e-30)))
    return greatest


def check_qonnx(path: Path, model: nn.Module, example: tuple, report) -> None:
    """The qonnx executor must give what the merged model gives."""
    results = run_qonnx(path, example)
    report.quant_nodes = sum(node.op_type == 'Quant' for node in
                             onnx.load(str(path)).graph.node)
    report.difference = difference(model(*example), results)


def run_qonnx(path: Path, args: Sequence[Tensor]) -> List[np.ndarray]:
    """Run a QONNX file with the executor of the qonnx package."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes
    model = ModelWrapper(str(path)).transform(InferShapes())
    names = [each.name for each in model.graph.input]
    outputs = execute_onnx(model, {name: value.numpy()
                                   for name, value in zip(names, args)})
    return [outputs[each.name] for each in model.graph.output]
