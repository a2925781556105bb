"""Deployed models as ONNX files, written only after they were checked."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, Iterable, Optional, Sequence, Tuple, Union

import torch
from torch import nn

from ..integer.dynamic import other_examples
from ..integer.integer import Example, to_integer
from ..integer.model import IntegerModel
from ..merge import (
    WeightOnly,
    float_layers,
    in_float32,
    is_merged,
    merge,
    merged_layers,
)
from ..writing import check_new, write_whole
from .formats import QONNX_FORMATS, check_options


@dataclass
class ExportReport:
    """What was written and what the check of it showed.

    Args:
        path (Path): The file.
        format (str): 'qdq', 'tensorrt', 'qonnx', 'finn' or 'hls4ml'.
        size (int): Bytes.
        kernels (dict[str, str]): For every call of a quantized layer, the
            operator that ONNX Runtime runs ('qdq').
        float_layers (dict[str, str]): Layers that compute in float, and why.
        codes (dict[str, tuple[int, int]]): For every call, output codes that
            equal the reference's given the same input codes, and all ('qdq',
            'tensorrt').
        layers (dict[str, float]): For every call, the greatest difference
            from the merged model given the same input, relative to the
            greatest value ('qonnx', 'finn', 'hls4ml').
        difference (float): Greatest difference of an output of the whole
            from the reference's (the integer or the merged model), relative
            to its greatest value; of labels, the share that differs.
        others (dict[str, float]): The same for inputs of other shapes, by
            these (``dynamic``).
        quant_nodes (int): Number of Quant nodes ('qonnx', 'finn', 'hls4ml').
        steps (dict[str, float]): Greatest change of an output by
            transformations of qonnx and FINN ('finn'), by the form and the
            arithmetic of hls4ml ('hls4ml').
        cost (dict[str, float]): Multiply-accumulates, those weighted with
            their bits, and bits of weights, as qonnx counts ('finn').
    """
    path: Path
    format: str
    size: int = 0
    kernels: Dict[str, str] = field(default_factory=dict)
    float_layers: Dict[str, str] = field(default_factory=dict)
    codes: Dict[str, Tuple[int, int]] = field(default_factory=dict)
    layers: Dict[str, float] = field(default_factory=dict)
    difference: float = 0.
    others: Dict[str, float] = field(default_factory=dict)
    quant_nodes: int = 0
    steps: Dict[str, float] = field(default_factory=dict)
    cost: Dict[str, float] = field(default_factory=dict)

    def figures(self) -> dict:
        """All of it in primitive types."""
        figures = dict(
            path=self.path.name, format=self.format, size=self.size,
            difference=self.difference, others=self.others,
            float_layers=self.float_layers)
        if self.format in QONNX_FORMATS:
            return dict(figures, quant_nodes=self.quant_nodes,
                        layers=self.layers, steps=self.steps, cost=self.cost)
        equal, total = self.equal_codes()
        return dict(figures, kernels=self.kernels, codes_equal=equal,
                    codes=total)

    def equal_codes(self) -> Tuple[int, int]:
        """Over all calls: codes that equal the reference's, and all codes."""
        return (sum(equal for equal, _ in self.codes.values()),
                sum(total for _, total in self.codes.values()))

    def __str__(self) -> str:
        lines = [f'{self.path}: {self.format}, {self.size / 1e6:.3f} MB']
        if self.format not in QONNX_FORMATS and not self.codes:
            lines.append('weights only: all layers compute in float')
        elif self.format not in QONNX_FORMATS:
            equal, total = self.equal_codes()
            if self.kernels:
                lines.append(
                    f'integer kernels: {len(self.kernels)} of '
                    f'{len(self.kernels)} calls of quantized layers')
            lines += [
                f'codes equal to the integer model, given the same input '
                f'codes: {equal} of {total} ({equal / total:.6%})']
        else:
            lines += [
                f'{self.quant_nodes} Quant nodes',
                'greatest difference of a layer from the merged model, given '
                'the same input: '
                f'{max(self.layers.values(), default=0):.2e}']
        lines.append('greatest difference of an output from the '
                     f'reference: {self.difference:.2e}')
        lines += [f'of inputs {other}: {value:.2e}'
                  for other, value in self.others.items()]
        lines += [f'{step}: outputs change by {change:.1e}'
                  for step, change in self.steps.items()]
        lines += [f'{name}: {value:.0f}' for name, value in self.cost.items()]
        lines += [f'float: {name} ({reason})'
                  for name, reason in self.float_layers.items()]
        return '\n'.join(lines)


@torch.inference_mode(False)
@torch.no_grad()
def export_onnx(model: nn.Module, example: Example, path: Union[str, Path],
                format: str = 'qdq', *, weights: str = 'int8',
                calibration: Iterable[Example] = (),
                input_names: Optional[Sequence[str]] = None,
                output_names: Optional[Sequence[str]] = None,
                metadata: Optional[Dict[str, str]] = None,
                dynamic: Sequence[str] = (), opset: Optional[int] = None
                ) -> ExportReport:
    """Write a quantized model as ONNX.

    'qdq': the integer model, with ``QuantizeLinear -> Clip ->
    DequantizeLinear`` on 8-bit containers: ONNX Runtime runs every quantized
    layer as an integer kernel. 'tensorrt': the same with int8 codes, no zero
    points, no ``Clip`` behind a quantizer and float biases; activations have
    up to 8 bits, see :func:`to_integer`. 'qonnx': the merged model with
    ``Quant`` nodes of the true bits. 'finn': the same file, if it stands the
    transformations of qonnx and of FINN (where ``finn-plus`` is installed).
    'hls4ml': that file in the form that hls4ml reads, of one image; where
    ``hls4ml`` is installed, its compiled emulation gives the same.

    The file is written beside its place, loaded, run and compared with the
    PyTorch model, then renamed.

    Args:
        model (nn.Module): A quantized or merged model (or, except for
            'qonnx', 'finn' and 'hls4ml', an :class:`IntegerModel`); tensors
            in and out.
        example (Tensor or tuple): What the model is called with; fixes the
            shapes, except for what ``dynamic`` names.
        path (str): The file; must not exist.
        format (str): 'qdq', 'tensorrt', 'qonnx', 'finn' or 'hls4ml'.
            Defaults to 'qdq'.
        weights (str): Container of weight codes in a 'qdq' file: 'int8',
            'int4' or 'int2'; smaller ones hold the layers whose bits fit.
            They are unpacked when the file is loaded. Defaults to 'int8'.
        calibration (iterable): Real inputs for the 8-bit quantizers of
            residual sums, see :func:`to_integer`. Defaults to the example.
        input_names (sequence of str, optional): Names in the file.
        output_names (sequence of str, optional): Names in the file.
        metadata (dict[str, str], optional): Written into the file, beside
            the versions of this package and torch, the bits of every weight
            and of the codes that every layer reads.
        dynamic (sequence of str): What may differ from the example in 'qdq'
            and 'tensorrt' files: 'batch', 'size' (height and width); the
            file is run at others as well. Of an :class:`IntegerModel` it
            must be what that was made with. Defaults to nothing.
        opset (int): Version of ONNX's operators, of 'qdq' and 'tensorrt'
            files. Defaults to None: 18, or what its operators need.

    Returns:
        ExportReport: Print it.

    Raises:
        FileExistsError: ``path`` exists.
        ImportError: A package of the ``deploy`` extra is missing.
        ValueError: A value that is not allowed.
        RuntimeError: The check failed: ONNX Runtime runs a quantized layer
            in float, or computes something else. Nothing is written.

    Examples:
        >>> import gdrq_mm
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> converted = gdrq_mm.quantize_(model, dict(
        ...     weight=dict(bits=4), activation=dict(bits=4)))
        >>> images = torch.rand(2, 3, 8, 8)
        >>> gdrq_mm.calibrate(model, [lambda: model(images)])
        1
        >>> report = export_onnx(model.eval(), images, 'model.onnx')
        >>> report.path.name
        'model.onnx'
    """
    path = Path(path)
    check_options(format, weights, dynamic, opset)
    check_new(path)
    _require_packages()
    from . import onnx_check, onnx_file
    from .metadata import add_metadata
    example = in_float32(
        example if isinstance(example, tuple) else (example, ))
    if not is_merged(model):
        model = merge(model, *example)
    report = ExportReport(path, format)
    names = dict(input_names=input_names, output_names=output_names)
    if format in QONNX_FORMATS:
        if isinstance(model, IntegerModel):
            raise ValueError(f'{format} files are not made of an integer model'
                             ': give the merged one')
        _need_merged(model)
        report.float_layers = float_layers(model)
        proto = onnx_file.qonnx_proto(model, example, **names)
        check = _check_of(format)
    else:
        container = 'int8' if format == 'tensorrt' else 'uint8'
        if not isinstance(model, IntegerModel):
            _need_merged(model)
            model = to_integer(model, example, calibration, container,
                               dynamic)
        elif calibration:
            raise ValueError('calibration does nothing to an integer model: '
                             'give it to to_integer')
        if set(model.dynamic) != set(dynamic):
            raise ValueError(
                f'dynamic is {list(dynamic)}, that of the integer model '
                f'{list(model.dynamic)}; make it with to_integer(..., '
                f'dynamic={list(dynamic)})')
        if model.container != container:
            raise ValueError(
                f'{format} files have {container} activations, the integer '
                f'model {model.container}; make it with to_integer(..., '
                f'container={container!r})')
        model.check_inputs(example)
        report.float_layers = model.float_layers
        proto = onnx_file.qdq_proto(model, example, weights, opset=opset,
                                    **names)
        check = onnx_check.check_qdq if format == 'qdq' else \
            onnx_check.check_tensorrt
    add_metadata(proto, model, dict(metadata or {}, format=format))
    with write_whole(path) as part:
        onnx_file.write(proto, part)
        check(part, model, example, report)
        report.size = part.stat().st_size
        for other in other_examples(dynamic, example):
            again = ExportReport(path, format)
            try:
                check(part, model, other, again)
            except (RuntimeError, *onnx_check.RUNTIME_ERRORS) as error:
                raise RuntimeError(
                    f'with inputs of {shapes(other)} it fails; leave out '
                    f'dynamic. Nothing was written: {error}') from error
            report.others[shapes(other)] = again.difference
    return report


def _check_of(format: str) -> Callable:
    """The check of a QONNX file; packages of the others are not needed."""
    if format == 'finn':
        from .finn_check import check_finn
        return check_finn
    if format == 'hls4ml':
        from .hls4ml_form import write_for_hls4ml
        return write_for_hls4ml
    from .qonnx_check import check_qonnx
    return check_qonnx


def shapes(example: tuple) -> str:
    """Shapes of inputs, as a report shows them."""
    return ', '.join(' x '.join(map(str, each.shape)) for each in example)


def _need_merged(model: nn.Module) -> None:
    if not merged_layers(model) and not any(
            isinstance(layer, WeightOnly) for layer in model.modules()):
        raise ValueError(
            'no layer of the model has quantized weights, so that there is '
            'nothing to export: convert it with gdrq_mm.quantize_, with '
            'weight bits, and load the checkpoint of a model that was')


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        import qonnx  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{error.name} is missing: pip install "gdrq_mm[deploy]"'
        ) from error
