"""Captured graphs -> ONNX protos, by torch's own exporter."""
import re
from typing import Any, Callable, Dict, Optional, Sequence, Set

import torch
from onnx import ModelProto
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument
from torch.fx import GraphModule, Node

from ..integer.graph import exported, target_of
from ..merge.ops import OPS
from .formats import LATER, OPSET

Names = Optional[Sequence[str]]
IR_VERSION = 10
CONVOLUTIONS = OPS.conv2d.default, OPS.integer_conv2d.default
_MISSING = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")
_REMEDY = 'compute it otherwise, or wrap the model in a module that leaves ' \
    'it out'


def to_proto(module: torch.nn.Module, example: tuple,
             translations: Dict[Callable, Callable],
             input_names: Names = None, output_names: Names = None,
             dynamic: Sequence[str] = ()) -> ModelProto:
    """A model as ONNX, in opset :data:`OPSET`, or the first one that has all
    of its operators.

    Args:
        module (nn.Module): The model.
        example (tuple): What it is called with.
        translations (dict): How operators look in ONNX, by operator.
        input_names (sequence of str, optional): Names in the file.
        output_names (sequence of str, optional): Names in the file.
        dynamic (sequence of str): See :func:`gdrq_mm.deploy.to_integer`.

    Raises:
        RuntimeError: There is no ONNX form of the model.
        ValueError: Names are too many or too few, or not unique; an input
            is no tensor.
    """
    _check_tensors(example)
    # Captured first: code that asks whether it is exported to ONNX would take
    # ways of its own.
    program = exported(module, example, dynamic)
    _check_batched(program)
    _check_outputs(program)
    try:
        onnx_program = torch.onnx.export(
            program, (), dynamo=True, verbose=False, opset_version=OPSET,
            custom_translation_table=translations, input_names=input_names,
            output_names=output_names)
        _leave_names(onnx_program.model.graph,
                     {*(input_names or ()), *(output_names or ())})
        proto = onnx_program.model_proto
    except Exception as error:  # whatever torch raises
        raise RuntimeError('the model has no ONNX form: '
                           f'{_reason(error, module)}; {_REMEDY}') from error
    _check_names(proto, input_names, output_names)
    # Codes are float32 in PyTorch and integers here; and where in whose
    # files the model was written is nobody's business.
    del proto.graph.value_info[:]
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.input,
                 *proto.graph.output, *proto.graph.initializer):
        part.ClearField('metadata_props')
        part.ClearField('doc_string')
    proto.ir_version = IR_VERSION
    # Nothing else of what is written means something else there.
    needed = max([OPSET, *(LATER[node.op_type] for node in proto.graph.node
                           if node.op_type in LATER)])
    for each in proto.opset_import:
        each.version = each.version if each.domain else needed
    return proto


def _check_tensors(example: tuple) -> None:
    for number, each in enumerate(example):
        if not isinstance(each, Tensor):
            raise ValueError(
                f'input {number} of the example is a {type(each).__name__}; '
                'files take tensors: wrap the model in a module whose forward '
                'has them for arguments')


def _check_names(proto: ModelProto, input_names: Names, output_names: Names
                 ) -> None:
    for kind, names, values in (('input', input_names, proto.graph.input),
                                ('output', output_names, proto.graph.output)):
        if names is not None and len(names) != len(values):
            raise ValueError(
                f'{kind}_names is {list(names)}, allowed: one name for each '
                f'{kind} of the model, which are {len(values)}')
    given = [*(input_names or ()), *(output_names or ())]
    taken = [each.name for each in proto.graph.initializer]
    for name in given:
        if given.count(name) > 1 or name in taken:
            raise ValueError(
                f'{name!r}, of input_names or output_names, is the name of '
                'another input, output or weight: choose one of its own')


def _leave_names(graph: Any, names: Set[str]) -> None:
    """Give values inside a graph other names than these."""
    outputs = {id(value) for value in graph.outputs}
    for node in graph:
        for value in node.outputs:
            if value.name in names and id(value) not in outputs:
                value.name = f'{value.name}.inside'


def _check_batched(program: ExportedProgram) -> None:
    """Raise on convolutions of one image: ONNX knows batches alone."""
    buffers = program.graph_signature.inputs_to_buffers
    for node in program.graph.nodes:
        if target_of(node) in CONVOLUTIONS and node.meta['val'].dim() == 3:
            name = buffers[node.args[1].name].rpartition('.')[0]
            shape = ' x '.join(map(str, node.args[0].meta['val'].shape))
            raise RuntimeError(
                f'{name} reads {shape} values without a batch, which ONNX has '
                'no convolution for; export the model with one of 1 (an '
                'example of shape (1, C, H, W))')


def _check_outputs(program: ExportedProgram) -> None:
    for number, each in enumerate(program.graph_signature.output_specs):
        if isinstance(each.arg, ConstantArgument):
            raise RuntimeError(
                f'output {number} of the model is {each.arg.value!r}, and '
                'files give tensors: wrap the model in a module that returns '
                'these alone')


def _reason(error: BaseException, module: torch.nn.Module) -> str:
    """What stops torch's exporter, in few words."""
    while error.__cause__ is not None:
        error = error.__cause__
    missing = _MISSING.search(str(error))
    if not missing:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    name = missing[1].rpartition('.')[2]
    nodes = module.graph.nodes if isinstance(module, GraphModule) else ()
    layers = filter(None, {_layer_of(node) for node in nodes
                           if name in str(target_of(node))})
    return f'no operator of ONNX computes {name}' + ''.join(
        f', which {layer} does' for layer in sorted(layers))


def _layer_of(node: Node) -> str:
    """Name of the innermost module that a node was captured in."""
    stack = list(node.meta.get('nn_module_stack', {}).values())
    return stack[-1][0] if stack else ''
