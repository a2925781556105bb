"""Files with the operators of another version of ONNX."""
from onnx import ModelProto, checker, defs, helper, version_converter

from .formats import OPSET


def in_opset(proto: ModelProto, opset: int) -> ModelProto:
    """The same model with the operators of another version.

    Raises:
        ValueError: There is an operator that cannot be turned into it.
    """
    if opset == OPSET:
        return proto
    plain = ModelProto()
    plain.CopyFrom(proto)
    _leave_out_defaults(plain)
    try:
        converted = version_converter.convert_version(plain, opset)
        checker.check_model(converted)
    except (RuntimeError, checker.ValidationError) as error:
        # "... No Adapter To Version $17 for Pad" and "... for operator Pad"
        kind = str(error).splitlines()[0].rpartition(' for ')[2]
        raise ValueError(
            f'opset {opset}: onnx cannot turn the '
            f'{kind.removeprefix("operator ").strip()} of the model into it; '
            f'{OPSET}, the default, always does, others between may'
        ) from error
    converted.ir_version = proto.ir_version
    return converted


def _leave_out_defaults(proto: ModelProto) -> None:
    """Attributes that say what holds without them: older operators do not
    have them, and onnx does not take them away."""
    for node in proto.graph.node:
        if node.domain:
            continue
        known = defs.get_schema(node.op_type, OPSET).attributes
        said = [each for each in node.attribute
                if not known[each.name].default_value.name
                or helper.get_attribute_value(each)
                != helper.get_attribute_value(known[each.name].default_value)]
        del node.attribute[:]
        node.attribute.extend(said)
