"""QONNX files as hls4ml reads them, and whether it computes what they say.

hls4ml 1.3 takes scales out of the weights of a convolution only where they are
one number and there is no bias: scales of channels and biases stand behind the
layer. It wants channels last, and constants without the dimension of a batch.
"""
import contextlib
import io
import tempfile
from pathlib import Path
from typing import List, Optional

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.util.cleanup import cleanup_model
from torch import Tensor, nn

from .qonnx_check import QONNX_TOLERANCE, check_qonnx

PRECISION = 'fixed<32,16>'  # of what no quantizer is for: sums, scales, biases
# Of an output, to its greatest value: 16 binary places, layer by layer.
HLS4ML_TOLERANCE = 1e-2
SCALED = 'Conv', 'MatMul'


def write_for_hls4ml(path: Path, model: nn.Module, example: tuple, report
                     ) -> None:
    """Check a QONNX file, and put one that hls4ml reads in its place; where
    ``hls4ml`` is installed, its compiled emulation must give the same.

    Raises:
        RuntimeError: The file, the rewritten file or the emulation gives other
            outputs, or hls4ml stops at it.
        ValueError: The example is a batch of several.
    """
    if any(len(each) != 1 for each in example):
        raise ValueError('hls4ml files are of one image; export with an '
                         'example whose batch is 1')
    check_qonnx(path, model, example, report)
    wrapper = cleanup_model(ModelWrapper(str(path)))
    expected = _outputs(wrapper, example)
    channels_last = [each.dim() == 4 for each in example]
    wrapper = cleanup_model(cleanup_model(scales_behind(wrapper)).transform(
        ConvertToChannelsLastAndClean(make_input_channels_last=True)))
    _drop_batches(wrapper)
    inputs = [each.movedim(1, -1) if last else each
              for each, last in zip(example, channels_last)]
    _compare('rewriting for hls4ml', report, expected,
             _outputs(wrapper, inputs), QONNX_TOLERANCE)
    found = emulated(wrapper, inputs)
    if found is not None:
        _compare('compiled emulation of hls4ml', report, expected, found,
                 HLS4ML_TOLERANCE)
    wrapper.save(str(path))


def scales_behind(model: ModelWrapper) -> ModelWrapper:
    """Weights as integers; their scales, and biases, behind the layers.

    Args:
        model (ModelWrapper): A QONNX file; changed in place.
    """
    graph, read = model.graph, []
    for node in list(graph.node):
        quant = model.find_producer(node.input[1]) \
            if node.op_type in SCALED else None
        if quant is None or quant.op_type != 'Quant':
            continue
        weight, scale = map(model.get_initializer, quant.input[:2])
        if weight is None or scale is None:
            continue
        place, target = list(graph.node).index(node), node.output[0]
        # One of its own for each call of a layer: channels last transposes
        # the weights of every convolution.
        own = onnx.NodeProto()
        own.CopyFrom(quant)
        own.output[0] = node.input[1] = f'{target}_weight'
        for number, value in enumerate((weight / scale, np.ones(()))):
            own.input[number] = f'{target}_weight_{number}'
            model.set_initializer(own.input[number],
                                  value.astype(np.float32))
        graph.node.insert(place, own)
        read.append(quant)
        is_conv = node.op_type == 'Conv'
        filters = weight.shape[0 if is_conv else -1]
        behind = [('Mul', np.broadcast_to(scale.reshape(-1), (filters, )))]
        if len(node.input) > 2:
            behind.append(('Add', model.get_initializer(node.input[2])))
            del node.input[2]
        source = node.output[0] = f'{target}_codes'
        for number, (operator, values) in enumerate(behind, 1):
            result = target if number == len(behind) else \
                f'{target}_{operator}'
            constant = f'{target}_{operator}_by'
            shape = (1, -1, 1, 1) if is_conv else (1, -1)
            model.set_initializer(constant, np.ascontiguousarray(
                values.reshape(shape), np.float32))
            graph.node.insert(place + 1 + number, helper.make_node(
                operator, [source, constant], [result]))
            source = result
    for quant in read:
        if quant in graph.node and not model.find_consumers(quant.output[0]):
            graph.node.remove(quant)
    return model


def _drop_batches(model: ModelWrapper) -> None:
    """Constants beside a tensor lose its first dimension, which broadcasts."""
    for node in model.graph.node:
        for name in node.input if node.op_type in (
                'Add', 'Mul', 'Sub', 'Div') else ():
            value = model.get_initializer(name)
            if value is not None and value.ndim > 1 and len(value) == 1:
                model.set_initializer(name, value[0])


def emulated(model: ModelWrapper, inputs: List[Tensor]
             ) -> Optional[List[np.ndarray]]:
    """What hls4ml's compiled C++ gives, None where it is not installed.

    Args:
        model (ModelWrapper): A file in this form.
        inputs (list[Tensor]): Its inputs, shape ``(1, H, W, C)`` or
            ``(1, features)``.

    Raises:
        RuntimeError: It stops at the model, or the compiler does.
    """
    try:
        from hls4ml.converters import convert_from_onnx_model
        from hls4ml.utils import config_from_onnx_model
    except ImportError:
        return None
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, \
            contextlib.redirect_stdout(said):
        try:
            config = config_from_onnx_model(
                model, granularity='name', backend='Vitis',
                default_precision=PRECISION)
            project = convert_from_onnx_model(
                model, output_dir=folder, io_type='io_stream',
                backend='Vitis', hls_config=config)
            project.compile()
            arrays = [np.ascontiguousarray(each.numpy()) for each in inputs]
            found = project.predict(arrays[0] if len(arrays) == 1 else arrays)
        except Exception as error:
            raise RuntimeError(
                f'hls4ml stops at this model ({error}); nothing was written. '
                'Export the part that it has operators for (--raw leaves '
                "post-processing out), or the file for others: "
                "format='qonnx'") from error
    return found if isinstance(found, list) else [found]


def _outputs(model: ModelWrapper, example) -> List[np.ndarray]:
    onnxruntime.set_default_logger_severity(3)
    results = execute_onnx(model, {
        each.name: value.contiguous().numpy()
        for each, value in zip(model.graph.input, example)})
    return [results[each.name] for each in model.graph.output]


def _compare(step: str, report, expected: List[np.ndarray],
             found: List[np.ndarray], tolerance: float) -> None:
    """Raise where outputs differ; sizes, since their layout may be another."""
    worst = max(float(np.abs(ours.ravel() - theirs.ravel()).max() / max(
        np.abs(ours).max(), 1e-30)) for ours, theirs in zip(expected, found))
    report.steps[step] = worst
    if not worst <= tolerance:
        raise RuntimeError(
            f'outputs change by {worst:.1e} in the {step}; nothing was '
            "written. The file without this check: format='qonnx'")
