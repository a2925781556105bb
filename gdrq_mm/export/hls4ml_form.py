"""QONNX files as hls4ml reads them, and whether it computes what they say.

hls4ml 1.3 takes scales out of the weights of a convolution only where they are
one number and there is no bias: scales of channels and biases stand behind the
layer. It wants channels last, and constants without the dimension of a batch.
"""
import contextlib
import importlib.util
import io
import tempfile
import warnings
from pathlib import Path
from typing import List

import numpy as np
import onnx
from onnx import helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.transformation.gemm_to_matmul import GemmToMatMul
from qonnx.util.cleanup import cleanup_model
from torch import Tensor, nn

from .qonnx_check import QONNX_TOLERANCE, check_qonnx, outputs_by_place

# Of an output, to its greatest value: binary places, layer by layer.
HLS4ML_TOLERANCE = 1e-2
SCALED = 'Conv', 'MatMul'
# Of what no quantizer is for: sums, scales, biases. With 16 binary places,
# scales below 1/128 are off by more than 0.4%.
NARROW, WIDE = 'fixed<32,16>', 'fixed<48,16>'
LEAST_SCALE = 1 / 128
PRECISION = 'hls4ml_precision'  # where a file says what they need


def write_for_hls4ml(path: Path, model: nn.Module, example: tuple, report
                     ) -> None:
    """Check a QONNX file, and put one that hls4ml reads in its place; where
    ``hls4ml`` is installed, its compiled emulation must give the same.

    Raises:
        RuntimeError: The file, the rewritten file or the emulation gives other
            outputs, or hls4ml stops at it.
        ValueError: The example is not one image or one row of features.
    """
    if len(example) != 1 or len(example[0]) != 1 or \
            example[0].dim() not in (2, 4):
        raise ValueError(
            'hls4ml files have one input, of shape (1, C, H, W) or (1, '
            f'features), not {[tuple(each.shape) for each in example]}')
    check_qonnx(path, model, example, report)
    plain = ModelWrapper(str(path))
    names = [each.name for each in (*plain.graph.input, *plain.graph.output)]
    # Of linear layers whose input is float.
    wrapper = cleanup_model(plain.transform(GemmToMatMul()))
    expected = outputs_by_place(wrapper, example)
    inputs = example[0] if example[0].dim() == 2 else \
        example[0].movedim(1, -1).contiguous()
    step = 'rewriting for hls4ml'
    try:
        wrapper = cleanup_model(cleanup_model(scales_behind(wrapper))
                                .transform(ConvertToChannelsLastAndClean(
                                    make_input_channels_last=True)))
        _drop_batches(wrapper)
        for each, name in zip((*wrapper.graph.input, *wrapper.graph.output),
                              names):
            if name != 'input':  # hls4ml has a layer of that name
                wrapper.rename_tensor(each.name, name)
        found = outputs_by_place(wrapper, (inputs, ))
    except Exception as error:  # whatever qonnx and ONNX Runtime raise
        raise RuntimeError(
            f'{step} stops at this model ({error}); nothing was written. '
            'Activation functions other than ReLU do that (train with ReLU), '
            'and tensors that an output and a layer read; or take the file '
            "for other readers of QONNX, format='qonnx'"
        ) from error
    _compare(step, report, expected, found, QONNX_TOLERANCE)
    precision = precision_of(wrapper)
    wrapper.set_metadata_prop(PRECISION, precision)
    if importlib.util.find_spec('hls4ml') is None:
        warnings.warn('hls4ml is not installed, so its arithmetic was not '
                      'compared: pip install hls4ml')
    else:
        _compare(f'compiled emulation of hls4ml, {precision}', report,
                 expected, emulated(wrapper, inputs, precision),
                 HLS4ML_TOLERANCE)
    wrapper.save(str(path))


def precision_of(model: ModelWrapper) -> str:
    """The type of hls4ml for what no quantizer is for.

    Args:
        model (ModelWrapper): A file in this form.

    Returns:
        str: That of 16 binary places, or of 32 where a scale is too small for
        them, as those of 8 bits are.
    """
    scales = [model.get_initializer(name) for node in model.graph.node
              for name in {'Quant': node.input[1:2],
                           'Mul': node.input}.get(node.op_type, ())]
    least = min((float(each[each > 0].min()) for each in scales
                 if each is not None and (each > 0).any()), default=1.)
    return WIDE if least < LEAST_SCALE else NARROW


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
        biases = [model.get_initializer(name) for name in node.input[2:]]
        is_conv = node.op_type == 'Conv'
        if any(each is None for each in (weight, scale, *biases)):
            continue
        filters = weight.shape[0 if is_conv else -1]
        if scale.size not in (1, filters):
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
        behind = [('Mul', np.broadcast_to(scale.reshape(-1), (filters, ))),
                  *(('Add', bias) for bias in biases)]
        del node.input[2:]
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


def emulated(model: ModelWrapper, inputs: Tensor, precision: str
             ) -> List[np.ndarray]:
    """What hls4ml's compiled C++ gives.

    Args:
        model (ModelWrapper): A file in this form.
        inputs (Tensor): Its input, shape ``(1, H, W, C)`` or
            ``(1, features)``.
        precision (str): See :func:`precision_of`.

    Raises:
        RuntimeError: It stops at the model, or the compiler does.
    """
    from hls4ml.converters import convert_from_onnx_model
    from hls4ml.utils import config_from_onnx_model
    said, step = io.StringIO(), 'hls4ml stops at this model'
    with tempfile.TemporaryDirectory() as folder, \
            contextlib.redirect_stdout(said):
        try:
            config = config_from_onnx_model(
                model, granularity='name', backend='Vitis',
                default_precision=precision)
            project = convert_from_onnx_model(
                model, output_dir=folder, io_type='io_stream',
                backend='Vitis', hls_config=config)
            step = 'the emulation of hls4ml does not compile with g++'
            project.compile()
            step = 'the emulation of hls4ml does not run'
            found = project.predict(np.ascontiguousarray(inputs.numpy()))
        except Exception as error:
            last = '\n'.join(said.getvalue().splitlines()[-9:])
            raise RuntimeError(
                f'{step}: {error}; nothing was written. Depthwise and grouped '
                'convolutions do that, and what it has no operators for. The '
                'file for other readers of QONNX, without this check: '
                "format='qonnx'. "
                f'hls4ml and the compiler said last:\n{last}') from error
    return found if isinstance(found, list) else [found]


def _compare(step: str, report, expected: List[np.ndarray],
             found: List[np.ndarray], tolerance: float) -> None:
    """Raise where values differ, whatever the shape that they come in."""
    if [each.size for each in expected] != [each.size for each in found]:
        raise RuntimeError(
            f'{step}: outputs have the sizes {[each.size for each in found]} '
            f'in place of {[each.size for each in expected]}; nothing was '
            "written. The file without this check: format='qonnx'")
    worst = float(np.max([
        np.abs(ours.ravel() - theirs.ravel()).max() / max(
            np.abs(ours).max(), 1e-30)
        for ours, theirs in zip(expected, found)]))
    report.steps[step] = worst
    if not worst <= tolerance:
        raise RuntimeError(
            f'outputs change by {worst:.1e} in the {step}; nothing was '
            'written. A value on the border of two codes does that in single '
            'images: try another one. The file without this check: '
            "format='qonnx'")
