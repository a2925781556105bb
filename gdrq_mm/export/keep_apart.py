"""Where a runtime would mix up what is on integers and what is in float."""
from typing import Dict, List

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

ROUNDED = 'Conv', 'ConvTranspose'  # whose float weights it rounds
# As those of these, where codes of what they give are read.
LINEAR = 'Gemm', 'MatMul'
# Past these it looks for who reads them.
PASSED = ('Add', 'Flatten', 'Reshape', 'Slice', 'Split', 'Squeeze',
          'Transpose', 'Unsqueeze')
FUSED = ('Clip', 'Elu', 'HardSigmoid', 'LeakyRelu', 'Relu', 'Selu', 'Sigmoid',
         'Softplus', 'Softsign', 'Tanh', 'ThresholdedRelu')
SAME_SHAPE = 'rows.same_shape'
ENDS = dict(least=-3e38, greatest=3e38)  # of a clip that clips nothing


def keep_apart(proto: ModelProto) -> None:
    """Let layers in float stay so, and layers on integers as well, in place.

    Between a DequantizeLinear and a QuantizeLinear, ONNX Runtime rounds the
    float weights of a convolution or linear layer to 8 bits, one scale for
    all filters: it gets the same values in other words; so does a Softmax,
    which would be a table of codes. And of a Gemm and an activation right
    behind it, ONNX Runtime makes one operator, in float, and leaves a Gemm in
    float whose result is read as codes and otherwise: something goes between.
    OpenVINO averages codes as codes, rounded, whoever reads the average.

    Args:
        proto (ModelProto): A file with codes as uint8.
    """
    makers = {name: node for node in proto.graph.node for name in node.output}
    outputs = {each.name for each in proto.graph.output}
    readers: Dict[str, List[NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def is_dequantized(name: str) -> bool:
        return name in makers and makers[name].op_type == 'DequantizeLinear'

    def becomes_codes(node: NodeProto) -> bool:
        return any(
            reader.op_type == 'QuantizeLinear'
            or reader.op_type in PASSED and becomes_codes(reader)
            for name in node.output for reader in readers.get(name, ()))

    def only_becomes_codes(node: NodeProto) -> bool:
        return node.output[0] not in outputs and all(
            reader.op_type == 'QuantizeLinear'
            for reader in readers.get(node.output[0], ()))

    def stays_float(name: str) -> bool:
        kinds = [each.op_type for each in readers.get(name, ())]
        return not set(FUSED).isdisjoint(kinds) or 'QuantizeLinear' in kinds \
            and (len(kinds) > 1 or name in outputs)

    nodes: List[NodeProto] = []
    plain: Dict[str, str] = {}  # dequantized values -> the same, in float
    renamed: Dict[str, str] = {}
    averages = False
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        if is_dequantized(node.input[0]) and (
                node.op_type == 'Softmax' and becomes_codes(node)
                or (node.op_type in ROUNDED
                    or node.op_type in LINEAR and becomes_codes(node))
                and not is_dequantized(node.input[1])):
            name = node.input[0]
            if name not in plain:
                nodes += _in_float(makers[name])
                plain[name] = nodes[-1].output[0]
            node.input[0] = plain[name]
        if node.op_type == 'AveragePool' and is_dequantized(node.input[0]) \
                and not only_becomes_codes(node):
            name = f'{node.output[0]}.unrounded'
            nodes.append(helper.make_node(
                'Clip', [node.input[0], *map('float.{}'.format, ENDS)],
                [name]))
            node.input[0] = name
            averages = True
        nodes.append(node)
        if node.op_type == 'Gemm' and is_dequantized(node.input[1]) and (
                stays_float(node.output[0])):
            name = node.output[0]
            renamed[name] = f'{name}.apart'
            nodes.append(helper.make_node(
                'Reshape', [name, SAME_SHAPE], [renamed[name]]))
    if averages:
        proto.graph.initializer.extend(
            numpy_helper.from_array(np.float32(end), f'float.{name}')
            for name, end in ENDS.items())
    if renamed:
        proto.graph.initializer.append(numpy_helper.from_array(
            np.array([0, -1]), SAME_SHAPE))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _in_float(dequantize: NodeProto) -> List[NodeProto]:
    """Nodes that compute what a DequantizeLinear does."""
    (codes, scale, zero), (name, ) = dequantize.input, dequantize.output
    return [
        helper.make_node(kind, inputs, [f'{name}.{output}'], **attributes)
        for kind, inputs, output, attributes in (
            ('Cast', [codes], 'codes', dict(to=TensorProto.FLOAT)),
            ('Cast', [zero], 'zero', dict(to=TensorProto.FLOAT)),
            ('Sub', [f'{name}.codes', f'{name}.zero'], 'from_zero', {}),
            ('Mul', [f'{name}.from_zero', scale], 'float', {}))]
