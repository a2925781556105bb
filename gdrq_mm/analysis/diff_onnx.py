"""Where an exported file and its model part, layer by layer.

The file keeps the names of layers: a call in it is looked up by its name.
"""
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Tuple, Union

import numpy as np
import torch
from torch import fx, nn

from ..integer import IntegerModel
from ..integer.graph import capture
from .diff import Difference


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what some nodes give."""

    def __init__(self, module: fx.GraphModule, names: set) -> None:
        super().__init__(module)
        self.names, self.kept = names, {}

    def run_node(self, n):
        result = super().run_node(n)
        if n.name in self.names:
            self.kept[n.name] = result
        return result


@torch.no_grad()
def compare_onnx(model: IntegerModel, path: Union[str, Path],
                 examples: Iterable[tuple]) -> List[Difference]:
    """Compare the output codes of every call of a layer.

    Args:
        model (IntegerModel): What the file was exported from.
        path (str or Path): A qdq or tensorrt file.
        examples (iterable of tuple[Tensor]): Inputs of both.

    Returns:
        list[Difference]: One per call, in the order of the file, of all
        examples; ``own`` is with the very codes that the file's layer read.

    Raises:
        ImportError: A package of the ``deploy`` extra is missing.
        ValueError: The file has no quantized layer, or none of a call's name.
    """
    onnx, onnx_check, onnx_file, _ = _deploy_packages()
    layers = {each.node.name
              for each in onnx_file.layer_nodes(onnx.load(str(path)))}
    names = list(onnx_file.numbered(call.layer for call in model.calls))
    missing = [name for name in names if name not in layers]
    if missing:
        raise ValueError(
            f'{path} has no quantized layer {missing[0]}: give the file that '
            'was exported from this checkpoint')
    recorder = _Recorder(model.graph_module,
                         {call.node for call in model.calls})
    optimise = runs_optimised(path)
    found = [Difference(name) for name in names]
    for example in examples:
        calls, _ = onnx_check.run_layers(Path(path), model, example,
                                         optimise=optimise)
        recorder.run(*example)
        for difference, call in zip(found, calls):
            difference.whole.add(recorder.kept[call.node.name], call.found)
            difference.own.add(call.expected, call.found)
    return found


def facts_of_file(path: Union[str, Path]) -> Dict[str, str]:
    """What a file says of itself.

    Args:
        path (str or Path): An ONNX file.

    Raises:
        ImportError: A package of the ``deploy`` extra is missing.
    """
    proto = _deploy_packages()[0].load(str(path))
    return {each.key: each.value for each in proto.metadata_props}


def runs_optimised(path: Union[str, Path]) -> bool:
    """Whether ONNX Runtime may optimise a file, as where it was checked.

    Its integer kernels are not made for the weights of the tensorrt form: on
    CPUs with AVX2 alone their sums saturate without a word.

    Args:
        path (str or Path): A qdq or tensorrt file.

    Raises:
        ImportError: A package of the ``deploy`` extra is missing.
    """
    return facts_of_file(path).get('format') != 'tensorrt'


def images_of_file(path: Union[str, Path]
                   ) -> Tuple[Optional[Tuple[int, int]], torch.dtype]:
    """What images a file takes.

    Args:
        path (str or Path): An ONNX file.

    Returns:
        tuple: Their height and width, None where these are dynamic, and their
        dtype.

    Raises:
        ImportError: A package of the ``deploy`` extra is missing.
    """
    onnx = _deploy_packages()[0]
    kind = onnx.load(str(path)).graph.input[0].type.tensor_type
    sides = tuple(each.dim_value for each in kind.shape.dim[2:])
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return (sides if len(sides) == 2 and all(sides) else None,
            torch.from_numpy(np.zeros(0, dtype)).dtype)


def is_qonnx(path: Union[str, Path]) -> bool:
    """Whether a file has the Quant nodes of QONNX.

    Args:
        path (str or Path): An ONNX file.

    Raises:
        ImportError: A package of the ``deploy`` extra is missing.
    """
    proto = _deploy_packages()[0].load(str(path))
    return any(node.op_type == 'Quant' for node in proto.graph.node)


@torch.no_grad()
def compare_qonnx(model: nn.Module, path: Union[str, Path],
                  examples: Iterable[tuple]) -> List[Difference]:
    """Compare the outputs of every call of a layer.

    Args:
        model (nn.Module): The merged model that the file was exported from.
        path (str or Path): A QONNX file; the qonnx package runs it.
        examples (iterable of tuple[Tensor]): Inputs of both.

    Returns:
        list[Difference]: One per call, in the order of the file, of all
        examples; ``own`` is with the very input that the file's layer had.

    Raises:
        ImportError: A package of the ``deploy`` extra is missing.
        ValueError: The file has other quantized layers than the model.
    """
    onnx, _, _, qonnx_check = _deploy_packages()
    found: Dict[str, Difference] = {}
    module = None
    for example in examples:
        module = module or capture(model, example)
        try:
            outputs = list(qonnx_check.layer_outputs(
                onnx.load(str(path)), model, module,
                qonnx_check.run_qonnx(path, example)))
        except RuntimeError as error:
            raise ValueError(f'{path} was not exported from this checkpoint: '
                             f'{error}') from error
        recorder = _Recorder(module, {each.node.name for each in outputs})
        recorder.run(*example)
        for each in outputs:
            difference = found.setdefault(each.name, Difference(each.name))
            difference.whole.add(recorder.kept[each.node.name], each.found)
            difference.own.add(each.expected, each.found)
    return list(found.values())


def _deploy_packages() -> tuple:
    try:
        import onnx

        from ..export import onnx_check, onnx_file, qonnx_check
    except ImportError as error:
        raise ImportError(f'{error.name} is missing: pip install '
                          '"gdrq_mm[deploy]"') from error
    return onnx, onnx_check, onnx_file, qonnx_check
