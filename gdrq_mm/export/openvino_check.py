"""Run an exported QDQ file in OpenVINO, beside ONNX Runtime."""
from math import isnan
from pathlib import Path
from typing import Callable, Dict, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from .between_check import difference
from .onnx_check import run, session

# Layers in OpenVINO's graph as it runs.
PRODUCTS = ('Convolution', 'FullyConnected', 'MatMul')
METRIC_TOLERANCE = 0.2  # percentage points


def _compiled(path: Path, threads: int):
    try:
        import openvino
    except ImportError as error:
        raise ImportError('openvino is missing: pip install openvino'
                          ) from error
    core = openvino.Core()
    try:
        return core.compile_model(core.read_model(str(path)), 'CPU', dict(
            INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT='LATENCY',
            INFERENCE_PRECISION_HINT='f32'))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise RuntimeError(
            f'OpenVINO {openvino.__version__} does not open {path}: {reason}. '
            'The file is written and runs in ONNX Runtime; export it without '
            '--check openvino') from error


def open_openvino(path: Path, threads: int = 1
                  ) -> Callable[[Sequence[Tensor]], list]:
    """A file as a function, in OpenVINO on the CPU.

    Raises:
        ImportError: OpenVINO is not installed.
        RuntimeError: It cannot open the file.
    """
    compiled = _compiled(path, threads)

    def function(args: Sequence[Tensor]) -> list:
        result = compiled([value.numpy() for value in args])
        return [result[each] for each in compiled.outputs]

    return function


def integer_layers(path: Path) -> Tuple[int, int]:
    """Convolutions and matrix products that OpenVINO runs on integers, and
    all there are."""
    kinds = []
    for node in _compiled(path, 1).get_runtime_model().get_ordered_ops():
        told = node.get_rt_info()
        if told['layerType'].astype(str) in PRODUCTS:
            kinds.append(told['primitiveType'].astype(str))
    return sum(kind.lower().endswith(('i8', 'u8')) for kind in kinds), \
        len(kinds)


def check_openvino(path: Path, args: Sequence[Tensor]) -> Dict[str, float]:
    """What OpenVINO makes of a file.

    Args:
        path (Path): A QDQ file.
        args (sequence of Tensor): Its inputs.

    Returns:
        dict[str, float]: ``integer_layers`` and ``layers``, its own count;
        ``difference`` from ONNX Runtime's outputs, as in
        :class:`ExportReport`.
    """
    integer, layers = integer_layers(path)
    expected = list(map(torch.from_numpy, run(session(path), args)))
    return dict(integer_layers=integer, layers=layers, difference=difference(
        expected, open_openvino(path)(args)))


def metrics_apart(ours: Dict[str, float],
                  theirs: Sequence[Dict[str, float]], percent: bool
                  ) -> Dict[str, float]:
    """Metrics that lie more than 0.2 points outside what others span, and by
    how many points they do.

    What rounds otherwise moves a metric, that of few images the more. How
    far, the same file shows that one runtime computes in two ways.

    Args:
        ours (dict[str, float]): By name.
        theirs (sequence of dict[str, float]): By name, of each way.
        percent (bool): Whether they go up to 100; else up to 1.
    """
    apart = {}
    for name, value in ours.items():
        others = [each[name] for each in theirs]
        # A class that is not in the data has none.
        if name == 'agreement' or all(map(isnan, [value, *others])):
            continue
        low, high = np.min(others), np.max(others)  # NaN where one is
        points = (value - np.clip(value, low, high)) * (
            1 if percent else 100)
        if not abs(points) <= METRIC_TOLERANCE:
            apart[name] = float(points)
    return apart
