"""Integer and merged models -> ONNX protos."""
from pathlib import Path
from typing import Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.infer_shapes import InferShapes
from torch import nn
from torch.fx import GraphModule

from .export import CONTAINERS
from .graph import capture
from .integer import IntegerModel, IntegerWeight
from .layers import MergedLayer
from .merge import merged_layers
from .onnx_ops import QDQ_TRANSLATIONS, QONNX_DOMAIN, QONNX_TRANSLATIONS
from .ops import UINT8_OFFSET

Names = Optional[Sequence[str]]
IR_VERSION = 10  # INT4; 13 has INT2
LAYER_OPS = ('Conv', 'Gemm')


class LayerNode(NamedTuple):
    """A quantized layer in a QDQ file.

    Args:
        layer (str): Its name in the model.
        node (NodeProto): The Conv or Gemm.
        source (str): Name of the codes that go in.
        result (str): Name of the codes or float values that come out.
    """
    layer: str
    node: onnx.NodeProto
    source: str
    result: str


def qdq_proto(model: IntegerModel, example: tuple, weights: str,
              input_names: Names = None, output_names: Names = None
              ) -> ModelProto:
    """QDQ form of an integer model, weights in containers of ``weights``."""
    bits, opset = CONTAINERS[weights]
    proto = _export(model.graph_module, example, QDQ_TRANSLATIONS, opset,
                    input_names, output_names)
    counts: Dict[str, int] = {}
    for each in layer_nodes(proto):
        count = counts[each.layer] = counts.get(each.layer, 0) + 1
        each.node.name = each.layer + (f'#{count}' if count > 1 else '')
    if bits < 8:
        fitting = {name: weight for name, weight in model.weights.items()
                   if weight.bits <= bits}
        if not fitting:
            needed = min(weight.bits for weight in model.weights.values())
            raise ValueError(
                f'weights={weights!r}: no layer has weights of {bits} or '
                f'fewer bits, the smallest have {needed}')
        _pack(proto, fitting, bits)
    return proto


def qonnx_proto(model: nn.Module, example: tuple, input_names: Names = None,
                output_names: Names = None) -> ModelProto:
    """QONNX form of a merged model."""
    module = capture(model, example)
    for name, layer in merged_layers(model).items():
        _spell_out(module, name, layer)
    proto = _export(module, example, QONNX_TRANSLATIONS, 18, input_names,
                    output_names)
    if not any(each.domain == QONNX_DOMAIN for each in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(QONNX_DOMAIN, 1))
    return ModelWrapper(proto).transform(InferShapes()).model


def _spell_out(module: GraphModule, name: str, layer: MergedLayer) -> None:
    """Give a layer of the graph float weights, as Quant nodes read them."""
    try:
        part = module.get_submodule(name)
    except AttributeError:  # the example does not call it
        return
    shape = (-1, *[1] * (layer.weight.dim() - 1))
    part.w_scale = layer.w_scale.view(shape)
    part.weight = layer.weight * part.w_scale


def _export(module: GraphModule, example: tuple, translations: dict,
            opset: int, input_names: Names, output_names: Names
            ) -> ModelProto:
    program = torch.export.export(module, example, strict=False)
    proto = torch.onnx.export(
        program, (), dynamo=True, verbose=False, opset_version=opset,
        custom_translation_table=translations, input_names=input_names,
        output_names=output_names).model_proto
    # Codes are float32 in PyTorch and integers here; and where in whose
    # files the model was written is nobody's business.
    del proto.graph.value_info[:]
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.input,
                 *proto.graph.output, *proto.graph.initializer):
        part.ClearField('metadata_props')
        part.ClearField('doc_string')
    proto.ir_version = IR_VERSION
    return proto


def layer_nodes(proto: ModelProto) -> Iterator[LayerNode]:
    """Quantized layers of a QDQ file, in order."""
    producers = {name: node for node in proto.graph.node
                 for name in node.output}
    readers: Dict[str, list] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def source_of(name):
        node = producers.get(name)
        return node.input[0] if node is not None and \
            node.op_type == 'DequantizeLinear' else None

    def only(name, kind):
        nodes = readers.get(name, [])
        return nodes[0].output[0] if len(nodes) == 1 and nodes[
            0].op_type == kind else None

    for node in proto.graph.node:
        weight = source_of(node.input[1]) if node.op_type in LAYER_OPS \
            else None
        if weight is None:
            continue
        result = node.output[0]
        codes = only(result, 'QuantizeLinear')
        if codes is not None:
            result = only(codes, 'Clip') or codes
        yield LayerNode(weight.rpartition('.')[0], node,
                        source_of(node.input[0]), result)


def quant_layers(proto: ModelProto) -> Iterator[Tuple[str, str]]:
    """Names of input and result of the quantized layers of a QONNX file, in
    order."""
    producers = {name: node for node in proto.graph.node
                 for name in node.output}
    sums = {node.input[0]: node.output[0] for node in proto.graph.node
            if node.op_type == 'Add'}

    def is_quantized(name):
        node = producers.get(name)
        if node is not None and node.op_type == 'Transpose':
            node = producers.get(node.input[0])
        return node is not None and node.op_type == 'Quant'

    for node in proto.graph.node:
        if node.op_type in ('Conv', 'MatMul') and is_quantized(node.input[1]):
            result = node.output[0]
            yield node.input[0], sums[result] if \
                node.op_type == 'MatMul' else result


def _pack(proto: ModelProto, weights: Dict[str, IntegerWeight], bits: int
          ) -> None:
    """Store weights in a container of 2 or 4 bits.

    Integer kernels read 8 bits: a Cast (with the layer's factor) unpacks the
    codes, once, when the file is loaded.
    """
    kind = {4: ml_dtypes.int4, 2: ml_dtypes.int2}[bits]
    if bits == 2:
        proto.ir_version = 13
    graph, nodes = proto.graph, []
    kept = [each for each in graph.initializer
            if each.name.rpartition('.')[0] not in weights
            or not each.name.endswith('.weight')]

    def add(array, name):
        kept.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    for layer, weight in weights.items():
        name = f'{layer}.weight'
        add(weight.codes.numpy().astype(kind), f'{name}.codes')
        unsigned = weight.stored.dtype == torch.uint8
        to = TensorProto.UINT8 if unsigned else TensorProto.INT8
        factor = weight.factor.view(-1, *[1] * (weight.codes.dim() - 1))
        steps = [('Mul', factor.numpy())] if (factor != 1).any() else []
        if unsigned:
            steps.append(('Add', np.int32(UINT8_OFFSET)))
        value = f'{name}.codes'
        if steps:
            nodes.append(helper.make_node(
                'Cast', [value], [f'{value}.int32'], to=TensorProto.INT32))
            value += '.int32'
        for step, operand in steps:
            operand = add(operand, f'{name}.{step}.operand')
            nodes.append(helper.make_node(
                step, [value, operand], [f'{name}.{step}']))
            value = f'{name}.{step}'
        nodes.append(helper.make_node('Cast', [value], [name], to=to))
    nodes += list(graph.node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def write(proto: ModelProto, path: Path) -> None:
    """Check a proto and write it."""
    if not any(each.domain == QONNX_DOMAIN for each in proto.opset_import):
        onnx.checker.check_model(proto)
    onnx.save(proto, str(path))
