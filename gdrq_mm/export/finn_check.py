"""Whether a QONNX file stands what FINN does to it."""
from pathlib import Path
from typing import Callable, List, Tuple

import numpy as np
from onnx import numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.transformation.lower_convs_to_matmul import LowerConvsToMatMul
from qonnx.util.cleanup import cleanup_model
from qonnx.util.inference_cost import inference_cost
from torch import nn

from .qonnx_check import QONNX_TOLERANCE, check_qonnx, outputs_by_place

COSTS = ('total_macs', 'total_bops', 'total_mem_w_bits')
# With which chains, residual and depthwise networks go through.
SURVIVES = (
    "Train with activation=dict(site='relu'), which quantizes modules of ReLU "
    '(not calls of F.relu), or with the outputs in residual=dict(outputs=[...]'
    ') that "gdrq analyze residuals" prints.')


def check_finn(path: Path, model: nn.Module, example: tuple, report) -> None:
    """The checks of a QONNX file; then transformations of qonnx and, where
    ``finn-plus`` is installed, of FINN must leave the outputs as they are.

    Raises:
        RuntimeError: Names what FINN would change, and the setting that
            avoids it. Nothing is written.
    """
    check_qonnx(path, model, example, report)
    wrapper = ModelWrapper(str(path))
    _check_nodes(wrapper)
    expected = outputs_by_place(wrapper, example)
    for name, step in (*_qonnx_steps(), *_finn_steps()):
        try:
            result = outputs_by_place(step(ModelWrapper(str(path))), example)
        except Exception as error:
            raise RuntimeError(
                f'{name} stops at this model ({error}); nothing was written. '
                f'{SURVIVES} Or export the part that FINN has operators for, '
                "or the file without this check: format='qonnx'") from error
        report.steps[name] = float(np.max(  # which a NaN stays in
            list(map(_difference, expected, result))))
    off = {name: value for name, value in report.steps.items()
           if not value <= QONNX_TOLERANCE}
    if off:
        shown = ', '.join(f'{name} by {value:.1e}'
                          for name, value in off.items())
        raise RuntimeError(
            f'outputs change: {shown}; nothing was written. {SURVIVES} Or '
            "export the file without this check: format='qonnx'")
    cost = inference_cost(str(path), discount_sparsity=False)['total_cost']
    report.cost = {name: float(cost[name]) for name in COSTS}


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / max(
        np.abs(ours).max(), 1e-30))


def _qonnx_steps() -> List[Tuple[str, Callable]]:
    """Transformations of the qonnx package."""
    return [
        ('channels last', lambda model: cleanup_model(model).transform(
            ConvertToChannelsLastAndClean(make_input_channels_last=False))),
        ('LowerConvsToMatMul', lambda model: cleanup_model(model).transform(
            LowerConvsToMatMul()))]


def _finn_steps() -> List[Tuple[str, Callable]]:
    """Those of FINN; none where it is not installed."""
    try:
        from finn.transformation.qonnx.convert_qonnx_to_finn import (
            ConvertQONNXtoFINN,
        )
        from finn.transformation.streamline import Streamline
    except ImportError:
        return []

    def converted(model):
        return cleanup_model(model).transform(ConvertQONNXtoFINN())

    def streamlined(model):
        return converted(model).transform(Streamline())

    return [
        ('ConvertQONNXtoFINN', converted), ('Streamline', streamlined),
        ('Streamline of matrix products', lambda model: streamlined(
            model).transform(LowerConvsToMatMul()).transform(Streamline()))]


def _check_nodes(model: ModelWrapper) -> None:
    """Raise on what FINN reads otherwise than it is meant."""
    stored = {each.name: numpy_helper.to_array(each)
              for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == 'Conv':
            _check_convolution(model, node)
    for node in model.graph.node:
        if node.op_type != 'Quant' or node.input[0] in stored:
            continue
        readers = model.find_consumers(node.output[0]) or []
        name = ', '.join(each.name for each in readers) or 'an output'
        if np.any(stored[node.input[2]]):
            raise RuntimeError(
                f'the input of {name} has a zero point, which FINN does not '
                'read; train with asymmetric=False (of activation, and of '
                'residual and products where they are set), or with a type '
                'without one. Nothing was written')
        source = model.find_producer(node.input[0])
        if source is None or source.op_type != 'Relu':
            continue
        others = [each.op_type for each in model.find_consumers(
            source.output[0]) if each.name != node.name]
        if others:
            raise RuntimeError(
                f'the ReLU before {name} is read by {", ".join(others)} as '
                'well, and FINN makes one node of it and its quantizer. '
                f'{SURVIVES} Nothing was written')


def _check_convolution(model: ModelWrapper, node) -> None:
    """Raise on one that is never lowered, whatever it was trained with."""
    weight = model.find_producer(node.input[1])
    stored = None if weight is None else model.get_initializer(weight.input[0])
    if stored is None:
        return
    groups = next((each.i for each in node.attribute
                   if each.name == 'group'), 1)
    calls = len(model.find_consumers(weight.output[0]))
    reason = (
        f'is a convolution over {stored.ndim - 2} dimensions; it lowers those '
        'of images' if stored.ndim != 4 else
        f'is a convolution of {groups} groups with {stored.shape[1]} channels '
        'each; it lowers those of one group, and of one channel a group'
        if groups > 1 and stored.shape[1] > 1 else
        f'is called {calls} times; it lowers one call of a layer' if calls > 1
        else '')
    if reason:
        raise RuntimeError(
            f'FINN cannot take {node.name} (with {weight.input[0]}), which '
            f'{reason}. Export the part '
            "without it, or the file without this check: format='qonnx'. "
            'Nothing was written')
