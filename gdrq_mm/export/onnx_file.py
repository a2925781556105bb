"""Integer and merged models -> ONNX protos."""
from pathlib import Path
from typing import (
    Container,
    Dict,
    Iterable,
    Iterator,
    NamedTuple,
    Optional,
    Set,
    Tuple,
)

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.infer_shapes import InferShapes
from torch import nn
from torch.fx import GraphModule, Node

from ..integer.graph import LAYERS, capture, layer_of, target_of
from ..integer.model import IntegerModel
from ..integer.weights import IntegerWeight
from ..merge import MergedLayer, WeightOnly, merged_layers
from ..merge.ops import OPS
from .codes import pack_codes
from .formats import CONTAINERS
from .keep_apart import keep_apart
from .onnx_ops import QONNX_DOMAIN, QONNX_TRANSLATIONS
from .opset import in_opset
from .qdq_ops import QDQ_TRANSLATIONS
from .to_proto import Names, to_proto

LAYER_OPS = ('Conv', 'Gemm')
CLAMPS = ('Relu', 'Clip')  # of float values that are to be codes
BITS = 6  # place of the bits among the arguments of a merged layer


class LayerNode(NamedTuple):
    """A quantized layer in a QDQ file.

    Args:
        node (NodeProto): The Conv or Gemm.
        source (str): Name of the codes that go in.
        result (str): Name of the codes or float values that come out.
    """
    node: onnx.NodeProto
    source: str
    result: str


def qdq_proto(model: IntegerModel, example: tuple, weights: str,
              input_names: Names = None, output_names: Names = None,
              opset: Optional[int] = None) -> ModelProto:
    """QDQ form of an integer model, weights in containers of ``weights``.

    Raises:
        ValueError: An operator of the model is not in ``opset``, or no
            layer's weights fit.
    """
    bits = CONTAINERS[weights]
    proto = to_proto(
        model.graph_module, example, QDQ_TRANSLATIONS[model.container],
        input_names, output_names, model.dynamic)
    proto = in_opset(proto, opset)
    if model.container == 'uint8':
        keep_apart(proto)
    # Not by their weights: equal ones are stored once.
    names = numbered(call.layer for call in model.calls)
    for each, name in zip(layer_nodes(proto), names):
        each.node.name = name
    if bits < 8:
        fitting = {name: weight for name, weight in model.weights.items()
                   if weight.bits <= bits}
        if not fitting and model.weights:
            needed = min(weight.bits for weight in model.weights.values())
            wider = [name for name, held in CONTAINERS.items()
                     if held >= needed]
            raise ValueError(
                f'weights={weights!r}: no layer has weights of {bits} or '
                f'fewer bits, the smallest have {needed}; choose '
                f'{" or ".join(map(repr, wider))}')
        _pack(proto, fitting, bits)
    return proto


def qonnx_proto(model: nn.Module, example: tuple, input_names: Names = None,
                output_names: Names = None) -> ModelProto:
    """QONNX form of a merged model."""
    module = capture(model, example)
    layers, calls = merged_layers(model), layer_calls(module)
    layers.update((name, layer) for name, layer in model.named_modules()
                  if isinstance(layer, WeightOnly))
    for node in module.graph.nodes:
        if target_of(node) in (*LAYERS, OPS.dequantize_weight.default):
            name = layer_of(node)
            _spell_out(module.get_submodule(name), layers[name])
            # Quant nodes know all integers of a symmetric range: the odd
            # codes of an even number of levels, and a least code without a
            # positive twin, need one bit more.
            place = BITS if target_of(node) in LAYERS else 2
            layer = layers[name]
            top = int(layer.weight.abs().max())
            node.update_arg(place, max(layer.bits, top.bit_length() + 1))
    proto = to_proto(module, example, QONNX_TRANSLATIONS, input_names,
                    output_names)
    if not any(each.domain == QONNX_DOMAIN for each in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(QONNX_DOMAIN, 1))
    # By name, since qonnx sorts nodes anew, and equal weights are stored once.
    names = {name: call for (name, *_), call in zip(
        quant_layers(proto, weights_alone(model)), calls)}
    for node in proto.graph.node:
        node.name = names.get(node.name, node.name)
    return ModelWrapper(proto).transform(InferShapes()).model


def _spell_out(part: nn.Module, layer: MergedLayer) -> None:
    """Give a layer of the graph float weights, as Quant nodes read them."""
    shape = (-1, *[1] * (layer.weight.dim() - 1))
    part.w_scale = layer.w_scale.view(shape)
    part.weight = layer.weight * part.w_scale


def layer_nodes(proto: ModelProto) -> Iterator[LayerNode]:
    """Quantized layers of a QDQ file, in order."""
    producers = {name: node for node in proto.graph.node
                 for name in node.output}
    readers: Dict[str, list] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def source_of(name, weight=False):
        node = producers.get(name)
        if node is None or node.op_type != 'DequantizeLinear':
            return None
        # A weight has a scale a filter; a kernel that is computed has one.
        by_filter = any(each.name == 'axis' and each.i == 0
                        for each in node.attribute)
        return node.input[0] if by_filter == weight else None

    outputs = {each.name for each in proto.graph.output}

    def only(name, *kinds):
        nodes = [] if name in outputs else readers.get(name, [])
        return nodes[0].output[0] if len(nodes) == 1 and nodes[
            0].op_type in kinds else None

    for node in proto.graph.node:
        if node.op_type not in LAYER_OPS or source_of(
                node.input[1], weight=True) is None:
            continue
        result = node.output[0]
        codes = only(only(result, *CLAMPS) or result, 'QuantizeLinear')
        if codes is not None:
            result = only(codes, 'Clip') or codes
        yield LayerNode(node, source_of(node.input[0]), result)


def layer_calls(module: GraphModule) -> Dict[str, Node]:
    """The calls of quantized layers in a captured graph, by name."""
    nodes = [node for node in module.graph.nodes if target_of(node) in LAYERS]
    return dict(zip(numbered(map(layer_of, nodes)), nodes))


def numbered(layers: Iterable[str]) -> Iterator[str]:
    """Names of calls: that of the layer, from the second call on with its
    number.

    Examples:
        >>> list(numbered(['stem', 'conv', 'conv']))
        ['stem', 'conv', 'conv#2']
    """
    counts: Dict[str, int] = {}
    for layer in layers:
        count = counts[layer] = counts.get(layer, 0) + 1
        yield layer + (f'#{count}' if count > 1 else '')


def weights_alone(model: nn.Module) -> Set[str]:
    """Names of the weights that are quantized, but not their layer's
    input."""
    return {_weight_of(name) for name, layer in model.named_modules()
            if isinstance(layer, WeightOnly)}


def _weight_of(layer: str) -> str:
    """Name of its weight; the layer may be the model itself."""
    return f'{layer}.weight'.lstrip('.')


def quant_layers(proto: ModelProto, alone: Container[str] = ()
                 ) -> Iterator[Tuple[str, str, str]]:
    """Names of node, input and result of the quantized layers of a QONNX
    file, in its order; not those whose weight is in ``alone``."""
    producers = {name: node for node in proto.graph.node
                 for name in node.output}
    sums = {node.input[0]: node.output[0] for node in proto.graph.node
            if node.op_type == 'Add'}
    stored = {each.name for each in proto.graph.initializer
              if each.name not in alone}

    def is_weight(name):
        node = producers.get(name)
        if node is not None and node.op_type == 'Transpose':
            node = producers.get(node.input[0])
        # A product of two activations may read a Quant node as well.
        return node is not None and node.op_type == 'Quant' \
            and node.input[0] in stored

    for node in proto.graph.node:
        if node.op_type in ('Conv', 'MatMul') and is_weight(node.input[1]):
            result = node.output[0]
            yield node.name, node.input[0], sums[result] if \
                node.op_type == 'MatMul' else result


def _pack(proto: ModelProto, weights: Dict[str, IntegerWeight], bits: int
          ) -> None:
    """Store the weights of some layers as packed codes of ``bits``.

    A Gather from a table (of codes times the layer's factor) unpacks them to
    int8, once, when the file is loaded.
    """
    graph, nodes = proto.graph, []
    stored = {each.name for each in graph.initializer}
    # Of layers with equal weights, one has them.
    weights = {layer: weight for layer, weight in weights.items()
               if _weight_of(layer) in stored}
    packed_names = set(map(_weight_of, weights))
    tensors = {each.name: each for each in graph.initializer
               if each.name not in packed_names}

    def constant(array, name):
        tensors[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def node(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    for layer, weight in weights.items():
        name, codes = _weight_of(layer), weight.codes.numpy()
        factor = weight.factor.numpy()
        # 1 to 127 times a code that fits, within int8.
        same = int(factor[0]) if (factor == factor[0]).all() else 1
        packed, table = pack_codes(codes, bits)
        table = constant(table * np.int8(same), 'table.{}.{}.{}.{}'.format(
            *table.shape, table[0, 0], same))
        value = node('Cast', [constant(packed, f'{name}.codes')],
                     f'{name}.index', to=TensorProto.INT32)
        value = node('Gather', [table, value], f'{name}.rows')
        if packed.size * tensors[table].dims[1] != codes.size:
            value = node('Reshape', [value, constant(
                np.array([-1]), 'pack.flat')], f'{name}.flat')
            value = node('Slice', [
                value, constant(np.array([0]), 'pack.begin'),
                constant(np.array([codes.size]), f'{name}.size')],
                f'{name}.all')
        uniform = (factor == same).all()
        value = node('Reshape', [value, constant(
            np.array(codes.shape), f'{name}.shape')],
            name if uniform else f'{name}.unit')
        if not uniform:
            value = node('Cast', [value], f'{name}.wide',
                         to=TensorProto.INT32)
            value = node('Mul', [value, constant(
                factor.reshape(-1, *[1] * (codes.ndim - 1)),
                f'{name}.factor')], f'{name}.product')
            node('Cast', [value], name, to=TensorProto.INT8)
    nodes += list(graph.node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors.values())


def write(proto: ModelProto, path: Path) -> None:
    """Check a proto and write it."""
    if not any(each.domain == QONNX_DOMAIN for each in proto.opset_import):
        onnx.checker.check_model(proto)
    onnx.save(proto, str(path))
