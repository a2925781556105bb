"""The arguments of ``tools/export_onnx.py``, refused before work begins."""
import argparse
from typing import List

from gdrq_mm.export import CONTAINERS, FORMATS
from gdrq_mm.export.formats import check_options
from gdrq_mm.integer.dynamic import DYNAMIC
from gdrq_mm.openmmlab.scopes import ConfigOptions


def names(text: str) -> List[str]:
    """What --dynamic names.

    Raises:
        ArgumentTypeError: A name that there is not.
    """
    found = text.split(',')
    if not set(found) <= set(DYNAMIC):
        raise argparse.ArgumentTypeError(
            f'{text!r}, allowed: {", ".join(DYNAMIC)} or {",".join(DYNAMIC)}, '
            'without spaces')
    return found


def check(args: argparse.Namespace) -> None:
    """Refuse what no model could be exported with.

    Raises:
        ValueError: Names the argument.
    """
    if args.shape and min(args.shape) < 1:
        raise ValueError(f'--shape is {args.shape[0]} {args.shape[1]}; give '
                         'a height and a width of 1 or more')
    for name, least in (('calibration-images', 1), ('speed-rounds', 0)):
        given = getattr(args, name.replace('-', '_'))
        if given < least:
            raise ValueError(f'--{name} is {given}; give {least} or more')
    check_options(args.format, args.weights, args.dynamic, args.opset)
    if args.check and args.format != 'qdq':
        raise ValueError(f'--check {args.check} runs qdq files; leave out '
                         f'--target {args.format}')
    if args.format == 'hls4ml' and (args.eval or args.input != 'float32'):
        raise ValueError('hls4ml files take normalized images with channels '
                         'last; leave out --eval and --input')
    if args.align and args.format == 'tensorrt':
        raise ValueError('--align rounds biases to those of integer kernels, '
                         'and biases of tensorrt files are float; leave it '
                         'out')
    if args.raw and args.eval:
        raise ValueError('--eval needs post-processing, which --raw leaves '
                         'out; choose one of them')


def parse_args(doc: str) -> argparse.Namespace:
    """Arguments of the process; ends it with 2 where they are refused.

    Args:
        doc (str): What --help says first.
    """
    parser = argparse.ArgumentParser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of the training, or as published')
    parser.add_argument('checkpoint', help='of the training, or as published')
    parser.add_argument('--target', '--format', choices=FORMATS,
                        default='qdq', dest='format',
                        help='qdq: ONNX Runtime, OpenVINO; tensorrt: int8 '
                        'without zero points; qonnx: true bits; finn: the '
                        'same, checked after the transformations of FINN; '
                        'hls4ml: the same, in the form that hls4ml reads')
    parser.add_argument('--check', choices=('openvino', ),
                        help='run the qdq file in OpenVINO as well: share of '
                        'integer layers, time and, with --eval, the metric')
    parser.add_argument('--weights', choices=CONTAINERS, default='int8',
                        help='how a qdq file stores weight codes')
    parser.add_argument('--out', help='the file; default: '
                        'CHECKPOINT.<format>.onnx')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'),
                        help='size of images; default: what all fit in')
    parser.add_argument('--raw', action='store_true',
                        help='outputs of the head, before post-processing')
    parser.add_argument('--input', choices=('float32', 'uint8'),
                        default='float32', help='type of images')
    parser.add_argument('--dynamic', type=names, default=[],
                        metavar='batch,size',
                        help='what may differ from the export; checked at '
                        'other values')
    parser.add_argument('--opset', type=int,
                        help='version of ONNX operators; default: 18, or '
                        'what the model needs')
    parser.add_argument('--calibration', metavar='DIR|none',
                        help='images to calibrate with; none: synthetic '
                        'ones; default: those of the training set')
    parser.add_argument('--calibration-images', type=int, default=32,
                        help='training images that set the scales of 8-bit '
                        'residual sums')
    parser.add_argument('--align', metavar='FILE',
                        help='round the biases of the model to those of '
                        'integer kernels first, and write that checkpoint')
    parser.add_argument('--eval', action='store_true',
                        help='metric on the test set: quantized model, '
                        'integer model, ONNX Runtime')
    parser.add_argument('--speed-rounds', type=int, default=20,
                        help='interleaved runs against the float export; 0: '
                        'none')
    parser.add_argument('--json', help='write all figures there as well')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions,
                        help='those of the training')
    args = parser.parse_args()
    try:
        check(args)
    except ValueError as error:
        parser.error(str(error))
    return args
