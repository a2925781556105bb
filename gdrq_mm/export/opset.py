"""Files with the operators of another version of ONNX."""
from typing import Optional

from onnx import ModelProto, checker, defs, helper, version_converter


def in_opset(proto: ModelProto, opset: Optional[int]) -> ModelProto:
    """The same model with the operators of another version.

    Args:
        proto (ModelProto): As :func:`.to_proto.to_proto` makes it.
        opset (int, optional): The version; None for that of ``proto``.

    Raises:
        ValueError: There is an operator that cannot be turned into it.
    """
    made = next(each.version for each in proto.opset_import
                if not each.domain)
    if opset in (None, made):
        return proto
    plain = ModelProto()
    plain.CopyFrom(proto)
    _leave_out_defaults(plain, made)
    try:
        for node in plain.graph.node:
            if not node.domain and not defs.has(node.op_type, opset):
                raise RuntimeError(f'there is no {node.op_type}')
        converted = version_converter.convert_version(plain, opset)
        checker.check_model(converted)
    except (RuntimeError, checker.ValidationError) as error:
        # Both end their first line with the operator.
        kind = str(error).splitlines()[0].split()[-1]
        raise ValueError(
            f'opset {opset}: onnx cannot turn the {kind} of the model into '
            f'it; {made}, the default, always does, others between may'
        ) from error
    converted.ir_version = proto.ir_version
    return converted


def _leave_out_defaults(proto: ModelProto, made: int) -> None:
    """Attributes that say what holds without them: older operators do not
    have them, and onnx does not take them away."""
    for node in proto.graph.node:
        if node.domain:
            continue
        known = defs.get_schema(node.op_type, made).attributes
        said = [each for each in node.attribute
                if not known[each.name].default_value.name
                or helper.get_attribute_value(each)
                != helper.get_attribute_value(known[each.name].default_value)]
        del node.attribute[:]
        node.attribute.extend(said)
