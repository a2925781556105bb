"""Where an exported file and its model part, layer by layer.

The file keeps the names of layers: a call in it is looked up by its name.
"""
import tempfile
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

import numpy as np
import torch
from torch import Tensor, fx, nn

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
                 example: tuple) -> List[Difference]:
    """Compare the output codes of every call of a layer.

    Args:
        model (IntegerModel): What the file was exported from.
        path (str or Path): A QDQ file.
        example (tuple[Tensor]): The input of both.

    Returns:
        list[Difference]: One per call, in the order of the file; ``own`` is
        with the very codes that the file's layer read.

    Raises:
        ImportError: A package of the ``deploy`` extra is missing.
        ValueError: The file has no quantized layer, or none of a call's name.
    """
    onnx, onnx_check, onnx_file, _ = _deploy_packages()
    proto = onnx.load(str(path))
    layers = {each.node.name: each for each in onnx_file.layer_nodes(proto)}
    names = list(onnx_file.numbered(call.layer for call in model.calls))
    missing = [name for name in names if name not in layers]
    if missing:
        raise ValueError(
            f'{path} has no quantized layer {missing[0]}: give the qdq file '
            'that was exported from this checkpoint')
    values = _tensors_of(proto, layers.values(), example, onnx, onnx_check)
    recorder = _Recorder(model.graph_module,
                         {call.node for call in model.calls})
    recorder.run(*example)
    nodes = {node.name: node for node in model.graph_module.graph.nodes}
    tensors = model.graph_module.state_dict()
    found = []
    for name, call in zip(names, model.calls):
        layer, node = layers[name], nodes[call.node]
        arguments = [tensors[value.target] if hasattr(value, 'target')
                     else value for value in node.args[1:]]
        codes = values[layer.source].float() + node.args[5]
        own = node.target(codes, *arguments)
        theirs = values[layer.result].float().view(own.shape)
        if call.grid is not None:
            theirs = theirs + call.grid.low
        difference = Difference(name)
        difference.whole.add(recorder.kept[call.node], theirs)
        difference.own.add(own, theirs)
        found.append(difference)
    return found


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
                  example: tuple) -> List[Difference]:
    """Compare the outputs of every call of a layer.

    Args:
        model (nn.Module): The merged model that the file was exported from.
        path (str or Path): A QONNX file; the qonnx package runs it.
        example (tuple[Tensor]): The input of both.

    Returns:
        list[Difference]: One per call, in the order of the file; ``own`` is
        with the very input that the file's layer had.

    Raises:
        ImportError: A package of the ``deploy`` extra is missing.
        ValueError: The file has other quantized layers than the model.
    """
    onnx, _, _, qonnx_check = _deploy_packages()
    module, found = capture(model, example), []
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
        difference = Difference(each.name)
        difference.whole.add(recorder.kept[each.node.name], each.found)
        difference.own.add(each.expected, each.found)
        found.append(difference)
    return found


def _deploy_packages() -> tuple:
    try:
        import onnx

        from ..export import onnx_check, onnx_file, qonnx_check
    except ImportError as error:
        raise ImportError(f'{error.name} is missing: pip install '
                          '"gdrq_mm[deploy]"') from error
    return onnx, onnx_check, onnx_file, qonnx_check


def _tensors_of(proto, layers, example: tuple, onnx, onnx_check
                ) -> Dict[str, Tensor]:
    """What layers read and give when ONNX Runtime runs the file."""
    outputs = {each.name for each in proto.graph.output}
    for layer in layers:
        for name in (layer.source, layer.result):
            if name not in outputs:
                outputs.add(name)
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
    with tempfile.TemporaryDirectory() as folder:
        opened = Path(folder) / 'opened.onnx'
        onnx.save(proto, str(opened))
        session = onnx_check.session(opened)
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy,
                               onnx_check.run(session, example))))
