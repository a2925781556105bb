"""Time and size of an exported file against the float export."""
import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

import torch
from torch import Tensor, nn

from ..layers import InputFirst, QuantLayer
from ..merge.layers import (
    MergedConv2d,
    MergedLayer,
    MergedReLU,
    RoundedInput,
    RoundedOutput,
    RoundedProducts,
    WeightOnly,
    take_place,
)
from .onnx_check import run, session

# A file and a number of threads -> a function of its inputs.
Opener = Callable[[Path, int], Callable[[Sequence[Tensor]], list]]


class _Float(InputFirst, nn.Module):
    """A merged layer without quantization: float weight, float input."""

    def __init__(self, layer: MergedLayer) -> None:
        super().__init__()
        scale = layer.w_scale.view(-1, *[1] * (layer.weight.dim() - 1))
        self.weight = nn.Parameter(layer.weight * scale, requires_grad=False)
        self.bias = nn.Parameter(layer.bias, requires_grad=False)
        self.options = (layer.stride, layer.padding, layer.dilation,
                        layer.groups) if isinstance(
                            layer, MergedConv2d) else None
        self.pad = layer if getattr(layer, 'pad_first', None) else None
        self.input_keywords = layer.input_keywords

    def forward(self, x: Tensor) -> Tensor:
        if self.options is None:
            return nn.functional.linear(x, self.weight, self.bias)
        if self.pad is not None:
            x = nn.functional.pad(x, self.pad.pad_first, self.pad.pad_mode)
        return nn.functional.conv2d(x, self.weight, self.bias, *self.options)


def float_form(model: nn.Module) -> nn.Module:
    """A merged model in float, normalization folded: what a float export
    computes (of weights that lie on the grid)."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(module, MergedReLU):
            module.grids = [None] * len(module.grids)
        elif isinstance(module, RoundedOutput):
            module.grid = None
        elif isinstance(module, QuantLayer):
            for part, _ in list(module.activation_quantizers()):
                setattr(module, part, None)
        elif isinstance(module, RoundedProducts):
            module.of_weights = set(range(module.number))
        for name, child in list(module._modules.items()):
            module._modules[name] = _float_layer(child)
    return _float_layer(model)


def _float_layer(layer: Optional[nn.Module]) -> Optional[nn.Module]:
    """What a layer is without quantization; others are as they were."""
    if isinstance(layer, MergedLayer):
        plain: nn.Module = _Float(layer)
    elif isinstance(layer, RoundedInput):
        plain = layer[0]
    elif isinstance(layer, WeightOnly):
        plain = layer.layer
        plain.weight = nn.Parameter(layer.float_weight(), requires_grad=False)
    else:
        return layer
    take_place(layer, plain)
    return _float_layer(plain)


def open_onnxruntime(path: Path, threads: int = 1
                     ) -> Callable[[Sequence[Tensor]], list]:
    """A file as a function, in ONNX Runtime."""
    runner = session(path, threads)
    return lambda args: run(runner, args)


@torch.no_grad()
def export_float(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write the float form of a merged model as ONNX."""
    from .onnx_file import write
    from .onnx_ops import COMMON_TRANSLATIONS
    from .to_proto import to_proto
    write(to_proto(float_form(model), (example, ), COMMON_TRANSLATIONS), path)


def speed_against_float(model: nn.Module, path: Path, example: Tensor,
                        rounds: int = 20, threads: int = 1,
                        open_file: Opener = None) -> Dict[str, float]:
    """Interleaved runs of an exported file and of the float export.

    Args:
        model (nn.Module): The merged model that ``path`` came from.
        path (Path): A QDQ file.
        example (Tensor): The input.
        rounds (int): Runs of each; 0 for sizes only. Defaults to 20.
        threads (int): Number of threads. Defaults to 1.
        open_file (callable, optional): Opens a file in another runtime than
            ONNX Runtime.

    Returns:
        dict[str, float]: ``float_size`` in bytes; with runs the median times
        ``ms`` and ``float_ms``, and median, least and greatest ratio of the
        pairs of runs.
    """
    with tempfile.TemporaryDirectory() as folder:
        floats = Path(folder) / 'float.onnx'
        export_float(model, example, floats)
        figures: Dict[str, float] = dict(float_size=floats.stat().st_size)
        if not rounds:
            return figures
        runners = [(open_file or open_onnxruntime)(each, threads)
                   for each in (path, floats)]
    times: List[List[float]] = []
    for index in range(rounds + 2):
        pair = []
        for runner in runners:
            start = time.perf_counter()
            runner([example])
            pair.append(1e3 * (time.perf_counter() - start))
        if index >= 2:  # the first ones warm up
            times.append(pair)
    ratios = [ours / theirs for ours, theirs in times]
    figures.update(
        ms=statistics.median(pair[0] for pair in times),
        float_ms=statistics.median(pair[1] for pair in times),
        time_ratio=statistics.median(ratios), time_ratio_least=min(ratios),
        time_ratio_greatest=max(ratios))
    return figures
