"""Exported files against the float export, in ONNX Runtime and OpenVINO.

Models of the packages' own configs at full width with random weights (speed
and size do not depend on them), first and last layers at 8 bits, the rest at
4 bits (weights of int2 files: 2). Interleaved runs, so that a busy machine
slows both sides.

Usage: python tools/benchmarks/benchmark_deploy.py [--models resnet18 ...]
       [--weights int8 int4 int2] [--activations 8] [--ends 7] [--json OUT]
"""
import argparse
import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Tuple

import torch
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from torch import Tensor, nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, to_integer
from gdrq_mm.deployable import make_deployable
from gdrq_mm.export.openvino_check import integer_layers, open_openvino
from gdrq_mm.export.speed import (
    export_float,
    open_onnxruntime,
    speed_against_float,
)
from gdrq_mm.merge import merge
from gdrq_mm.openmmlab.scopes import build_model
from gdrq_mm.training import update_bn_stats
from gdrq_mm.writing import write_whole


@dataclass
class Entry:
    """A model, and what is exported of it.

    Args:
        config (str): Config of an mm package.
        size (tuple[int, int]): Height and width of the image.
        ends (tuple[str]): Patterns of the layers at 8 bits.
        raw (bool): Without post-processing, whose time depends on how many
            boxes an untrained model happens to find. Defaults to False.
    """
    config: str
    size: Tuple[int, int]
    ends: Tuple[str, ...]
    raw: bool = False


MODELS = dict(
    resnet18=Entry('mmpretrain::resnet/resnet18_8xb32_in1k.py', (128, 128),
                   ('backbone.conv1', 'head.fc')),
    mobilenet_v2=Entry('mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
                       (128, 128), ('backbone.conv1.conv', 'head.fc')),
    retinanet_r18=Entry('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
                        (320, 320), ('backbone.conv1', 'bbox_head.retina_*'),
                        raw=True),
    pspnet_r18=Entry(
        'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
        (256, 256), ('backbone.stem.0', 'decode_head.conv_seg')))
BITS = dict(int8=4, int4=4, int2=2)  # of weights, by how a file stores them
RUNTIMES = dict(onnxruntime=open_onnxruntime, openvino=open_openvino)
# Of the CPU, the one with the fastest products of 8-bit integers first.
INSTRUCTIONS = ('avx512_vnni', 'avx_vnni', 'avx512_f', 'avx2')


def instruction_set() -> str:
    """What integer kernels multiply with here."""
    found = torch.cpu.get_capabilities()
    return next((name for name in INSTRUCTIONS if found.get(name)),
                platform.machine())


def build(entry: Entry, bits: Tuple[int, int], ends: int, example: Tensor
          ) -> nn.Module:
    """Quantize a model and merge its deployable form; thresholds are set by
    the example. ``bits`` are those of weights and activations, first and last
    layers have weights of ``ends`` bits."""
    torch.manual_seed(0)
    model = build_model(get_config(entry.config))
    model.eval()
    form = make_deployable(model, raw=entry.raw).eval()
    # What random weights compute vanishes with depth otherwise, and biases
    # leave int32.
    update_bn_stats(model, [lambda: form(255 * torch.rand(
        2, 3, *entry.size))])
    rule = dict(weight=dict(bits=ends), activation=dict(bits=8))
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=bits[0]), activation=dict(bits=bits[1]),
        rules=[dict(match=name, **rule) for name in entry.ends]))
    gdrq_mm.calibrate(model, [lambda: form(example)])
    return merge(form, example)


# In a process of its own, with nothing but ONNX Runtime in it.
MEMORY = """
import sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
session = onnxruntime.InferenceSession(
    sys.argv[1], options, providers=['CPUExecutionProvider'])
image = numpy.zeros((1, 3, *map(int, sys.argv[2:])), numpy.float32)
session.run(None, {session.get_inputs()[0].name: image})
status = open('/proc/self/status').read()
print(1024 * int(status.partition('VmHWM:')[2].split()[0]))
"""


def peak_memory(path: Path, size: Tuple[int, int]) -> int:
    """Peak resident bytes of a process that loads and runs a file once."""
    return int(subprocess.run(
        [sys.executable, '-c', MEMORY, str(path), *map(str, size)],
        check=True, capture_output=True, text=True).stdout)


@torch.no_grad()
def measure(name: str, weights: str, args: argparse.Namespace, folder: Path
            ) -> dict:
    """Export a model into a folder and run it: a row of the results."""
    entry = MODELS[name]
    example = 255 * torch.rand(1, 3, *entry.size)
    merged = build(entry, (BITS[weights], args.activations), args.ends,
                   example)
    integer = to_integer(merged, example)
    path, floats = folder / 'model.onnx', folder / 'float.onnx'
    report = export_onnx(integer, example, path, weights=weights)
    export_float(merged, example, floats)
    row = dict(
        model=name, image=entry.size, raw=entry.raw, weights=weights,
        weight_bits=BITS[weights], activation_bits=args.activations,
        end_weight_bits=args.ends,
        integer_kernels=len(report.kernels),
        quantized_layers=len(integer.calls), size=report.size,
        float_size=floats.stat().st_size,
        peak_memory=peak_memory(path, entry.size),
        float_peak_memory=peak_memory(floats, entry.size), runtimes={})
    for runtime in args.runtimes:
        row['runtimes'][runtime] = speed_against_float(
            merged, path, example, args.rounds, args.threads,
            RUNTIMES[runtime])
    if 'openvino' in args.runtimes:
        row['openvino_integer_layers'] = integer_layers(path)
    return row


def show(row: dict) -> None:
    """Print a row of the results."""
    print('{model} {image[0]}x{image[1]}, {weights}: {integer_kernels} of '
          '{quantized_layers} layers are integer kernels'.format(**row))
    for runtime, found in row['runtimes'].items():
        print('  {}: {time_ratio:.2f} ({time_ratio_least:.2f} to '
              '{time_ratio_greatest:.2f}) of float ({ms:.1f} / {float_ms:.1f}'
              ' ms)'.format(runtime, **found))
    print(f'  file {row["size"] / 1e6:.2f} / {row["float_size"] / 1e6:.2f} '
          f'MB; peak memory {row["peak_memory"] / 1e6:.0f} / '
          f'{row["float_peak_memory"] / 1e6:.0f} MB', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--models', nargs='+', choices=MODELS,
                        default=list(MODELS))
    parser.add_argument('--weights', nargs='+', choices=BITS,
                        default=['int8'])
    parser.add_argument('--runtimes', nargs='+', choices=RUNTIMES,
                        default=list(RUNTIMES))
    parser.add_argument('--ends', type=int, default=8,
                        help='bits of the weights of first and last layers')
    parser.add_argument('--activations', type=int, default=4,
                        help='bits of activations between them')
    parser.add_argument('--rounds', type=int, default=50)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--json', help='write the figures there')
    args = parser.parse_args()
    if args.json and Path(args.json).exists():
        parser.error(f'{args.json} exists; remove it or give another name')
    MMLogger.get_instance('mmengine', log_level='ERROR')
    figures = dict(
        instruction_set=instruction_set(), machine=platform.machine(),
        threads=args.threads, rounds=args.rounds, torch=torch.__version__,
        versions={name: version(name) for name in args.runtimes}, rows=[])
    print('{instruction_set}, threads: {threads}, rounds: {rounds}'.format(
        **figures), flush=True)
    for name in args.models:
        for weights in args.weights:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(name, weights, args, Path(folder))
            show(row)
            figures['rows'].append(row)
    if args.json:
        with write_whole(args.json) as part:
            part.write_text(json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
    main()
