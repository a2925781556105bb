"""What can be written: kinds of files, containers of weight codes."""
from typing import Optional, Sequence

FORMATS = ('qdq', 'tensorrt', 'qonnx', 'finn', 'hls4ml')
# With Quant nodes of the true bits.
QONNX_FORMATS = ('qonnx', 'finn', 'hls4ml')
OPSET = 18  # that files are made in
LATER = dict(DeformConv=19)  # operators that came later -> their opset
LEAST_OPSET, GREATEST_OPSET = 13, 23  # quantized by channel; ONNX Runtime
CONTAINERS = dict(int8=8, int4=4, int2=2)  # of weight codes -> their bits


def check_options(format: str, weights: str, dynamic: Sequence[str],
                  opset: Optional[int]) -> None:
    """Raise where options of a file exclude each other.

    Args:
        format (str): The kind of file.
        weights (str): Container of weight codes.
        dynamic (sequence of str): What may differ from the example.
        opset (int, optional): Version of ONNX's operators.

    Raises:
        ValueError: Names the value.
    """
    if format not in FORMATS:
        raise ValueError(f'format is {format!r}, allowed: {FORMATS}')
    if weights not in CONTAINERS:
        raise ValueError(
            f'weights is {weights!r}, allowed: {", ".join(CONTAINERS)}')
    if format != 'qdq' and weights != 'int8':
        raise ValueError(f'weights={weights!r} is a container of qdq files; '
                         f'{format} files have none of their own')
    if format in QONNX_FORMATS and (dynamic or opset not in (None, OPSET)):
        raise ValueError(f'{format} files have fixed shapes and opset '
                         f'{OPSET}; leave out dynamic and opset')
    if opset is not None and not LEAST_OPSET <= opset <= GREATEST_OPSET:
        raise ValueError(f'opset is {opset}, allowed: {LEAST_OPSET} to '
                         f'{GREATEST_OPSET}')
