"""Files with the operators of another version of ONNX."""
from onnx import ModelProto, version_converter

from .formats import OPSET


def in_opset(proto: ModelProto, opset: int) -> ModelProto:
    """The same model with the operators of another version.

    Raises:
        ValueError: There is an operator that cannot be turned into it.
    """
    if opset == OPSET:
        return proto
    try:
        converted = version_converter.convert_version(proto, opset)
    except RuntimeError as error:
        # "... No Adapter To Version $17 for Pad"
        kind = str(error).strip().rpartition(' for ')[2]
        raise ValueError(
            f'opset {opset}: onnx cannot turn the {kind} of the model into '
            f'it; choose a greater one, {OPSET} always does') from error
    converted.ir_version = proto.ir_version
    return converted
