"""Load an exported file and compare what it computes with PyTorch."""
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any, Callable, Collection, Dict, List, Sequence, Tuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state
from torch import Tensor

from ..integer import IntegerModel
from .between_check import LayerCall, check_between, choices, difference
from .onnx_file import layer_nodes, numbered

# What ONNX Runtime calls them in its optimised graph.
INTEGER_KERNELS = ('QLinearConv', 'QGemm')
EQUAL_CODES = 0.99999  # the least share, of every file
EQUAL_FLOAT_CODES = 0.999  # where products are summed in float
FUSED = 1e-2  # what of an output joined operators may change, by other codes
RUNTIME_ERRORS = (onnxruntime_pybind11_state.NotImplemented,
                  onnxruntime_pybind11_state.InvalidGraph,
                  onnxruntime_pybind11_state.Fail)


def session(path: Path, threads: int = 1, optimise: bool = True, **options
            ) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU.

    Args:
        path (Path): The file.
        threads (int): Within an operator. Defaults to 1.
        optimise (bool): All optimisations, or none. Defaults to True.
        **options: Attributes of ``onnxruntime.SessionOptions``.
    """
    settings = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    settings.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise \
        else levels.ORT_DISABLE_ALL
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
    return runner.run(None, {name: value.detach().numpy()
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
    # ONNX Runtime numbers what it makes of a node.
    found = {re.sub(r'_token_\d+$', '', node.name): node.op_type
             for node in nodes}
    return {call: found.get(call, 'nothing of this name') for call in calls}


def check_qdq(path: Path, model: IntegerModel, example: tuple, report
              ) -> None:
    """Every layer must run as an integer kernel and give equal codes."""
    report.kernels = _loaded(kernels, path)
    floats = {call: kind for call, kind in report.kernels.items()
              if kind not in INTEGER_KERNELS}
    _check_calls(report.kernels, model)
    if floats:
        shown = '\n'.join(f'  {call}: {kind}'
                          for call, kind in floats.items())
        raise RuntimeError(
            f'ONNX Runtime would run {len(floats)} of {len(model.calls)} '
            'quantized layers in float; nothing was written. Please report '
            'the model, or leave them float, with dict(match=NAME, skip=True) '
            f'in the rules:\n{shown}')
    _compare(path, model, example, report, EQUAL_CODES)


def _loaded(load: Callable, path: Path) -> Any:
    """What a function makes of a file that ONNX Runtime has to load."""
    try:
        return load(path)
    except RUNTIME_ERRORS as error:
        raise RuntimeError(
            'ONNX Runtime cannot load the file; nothing was written. Compute '
            'what it names otherwise, or wrap the model in a module that '
            f'leaves it out: {error}') from error


def _check_calls(found: Collection[str], model: IntegerModel) -> None:
    """Raise where a file has other calls of quantized layers."""
    wanted = list(numbered(call.layer for call in model.calls))
    if len(found) != len(wanted):
        off = ', '.join(sorted(set(found) ^ set(wanted)))
        raise RuntimeError(
            f'the file has {len(found)} calls of quantized layers, the model '
            f'{len(wanted)}: {off}; nothing was written. Please report the '
            'model, or leave these layers float, with rules that have '
            'skip=True')


def check_tensorrt(path: Path, model: IntegerModel, example: tuple, report
                   ) -> None:
    """Every layer reads codes without zero points and gives equal ones.

    ONNX Runtime computes what the file says, in float: how TensorRT fuses it
    is not seen here.
    """
    proto = onnx.load(str(path))
    values = {each.name: onnx.numpy_helper.to_array(each)
              for each in proto.graph.initializer}
    producers = {name: node for node in proto.graph.node
                 for name in node.output}
    for node in proto.graph.node:
        if node.op_type not in ('QuantizeLinear', 'DequantizeLinear'):
            continue
        point = values.get(node.input[2])
        if point is None or point.dtype != np.int8 or point.any():
            raise RuntimeError(
                f'{node.name} has a zero point or no int8 codes, which '
                'TensorRT does not read; nothing was written. Train with an '
                'activation type without zero points, or take '
                "format='qdq' (--target qdq)")
    for each in layer_nodes(proto):
        made = producers.get(each.node.input[0])
        if made is None or made.op_type != 'DequantizeLinear':
            raise RuntimeError(
                f'{each.node.name} reads a float tensor; nothing was written. '
                'Leave it float, with a rule that has skip=True, or take '
                "format='qdq' (--target qdq)")
    _loaded(session, path)
    _compare(path, model, example, report, EQUAL_FLOAT_CODES, optimise=False)


def _compare(path: Path, model: IntegerModel, example: tuple, report,
             least: float, **options) -> None:
    """Compare codes and outputs with the integer model.

    Args:
        least (float): Share of codes that must be equal.
        **options: Options of :func:`session`.
    """
    calls, values = run_layers(path, model, example, **options)
    report.codes = {each.name: equal_codes(each, call.grid is not None)
                    for each, call in zip(calls, model.calls)}
    _check_calls(report.codes, model)
    equal, total = report.equal_codes()
    if equal < least * total:
        worst = min(report.codes, key=lambda call: report.codes[call][0]
                    / max(report.codes[call][1], 1))
        raise RuntimeError(
            f'only {equal} of {total} codes equal the integer model, given '
            f'the same input codes; the worst layer is {worst} '
            f'{report.codes[worst]}. Nothing was written. Please report the '
            'model, or leave that layer float, with a rule that has '
            'skip=True')
    results = run(session(path, **options), example)
    report.difference = difference(model(*example), results)
    names = [each.name for each in onnx.load(str(path)).graph.output]
    check_between(model.graph_module, example, calls, values, names)
    fused = difference([torch.from_numpy(values[name]) for name in names],
                       results)
    if not fused <= FUSED:
        warnings.warn(
            f'{path.name}: an output differs by {fused:.1e} of its greatest '
            'value from that of the same file with the values between its '
            'layers read, which are those of the model: ONNX Runtime joins '
            'operators otherwise there; compare the metric (gdrq export '
            '--eval) before you use the file')


def equal_codes(call: LayerCall, gives_codes: bool) -> Tuple[int, int]:
    """Equal codes of a call, and all; of a layer that gives float values,
    those within 1e-5 of the greatest."""
    same = call.found == call.expected if gives_codes else (
        call.found - call.expected).abs() <= 1e-5 * call.expected.abs().max()
    return int(same.sum()), same.numel()


def run_layers(path: Path, model: IntegerModel, example: tuple, **options
               ) -> Tuple[List[LayerCall], Dict[str, np.ndarray]]:
    """Run a QDQ file, and each layer of the integer model on the very codes
    that the file's layer read.

    Args:
        **options: Options of :func:`session`.

    Returns:
        tuple[list[LayerCall], dict[str, ndarray]]: Calls of layers in order;
        values by name, of outputs, choices and what layers read and give.
    """
    proto = onnx.load(str(path))
    # What a layer of float values gives, not the codes made of them later.
    layers = [
        each if call.grid is not None else each._replace(
            result=each.node.output[0])
        for each, call in zip(layer_nodes(proto), model.calls)]
    made = {name for node in proto.graph.node for name in node.output}
    names = [each.name for each in proto.graph.output]
    for name in dict.fromkeys((
            *(name for each in layers for name in (each.source, each.result)),
            *filter(made.__contains__, choices(model.graph_module)))):
        if name not in names:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
    with tempfile.TemporaryDirectory() as folder:
        opened = Path(folder) / 'opened.onnx'
        onnx.save(proto, str(opened))
        runner = session(opened, **options)
    names = [each.name for each in runner.get_outputs()]
    values = dict(zip(names, run(runner, example)))
    nodes = {node.name: node for node in model.graph_module.graph.nodes}
    tensors = model.graph_module.state_dict()
    calls = []
    for each, call in zip(layers, model.calls):
        node = nodes[call.node]
        codes = _from_zero(values[each.source], node.args[5])
        expected = node.target(codes, *(
            tensors[value.target] if hasattr(value, 'target') else value
            for value in node.args[1:]))
        found = torch.from_numpy(values[each.result]) if call.grid is None \
            else _from_zero(values[each.result], call.grid.low)
        calls.append(LayerCall(each.node.name, node, codes, expected,
                               found.view(expected.shape)))
    return calls, values


def _from_zero(stored: np.ndarray, low: int) -> Tensor:
    """Codes counted from that of zero; uint8 ones begin with ``low``."""
    return torch.from_numpy(stored).float() + (
        low if stored.dtype == np.uint8 else 0)
