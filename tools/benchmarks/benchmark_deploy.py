"""ONNX Runtime with integer kernels against ONNX Runtime in float.

A ResNet of mmpretrain with random weights (speed and size do not depend on
them), first and last layer at 8 bits, the rest at 4 (int2 files: 2) bits.
Interleaved runs, so that a busy machine slows both sides.

Usage: python tools/benchmarks/benchmark_deploy.py [--depth 18] [--size 128]
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime
import torch
from mmpretrain.models import build_classifier
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, to_integer
from gdrq_mm.deployable import make_deployable
from gdrq_mm.export.speed import export_float, speed_against_float
from gdrq_mm.merge import merge


def build(depth: int, bits: int, example: torch.Tensor) -> nn.Module:
    """A merged ResNet for ImageNet, thresholds set by the example."""
    torch.manual_seed(0)
    model = build_classifier(dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=depth),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000,
                  in_channels=512 if depth < 50 else 2048),
        data_preprocessor=dict(mean=[123.675, 116.28, 103.53],
                               std=[58.395, 57.12, 57.375], to_rgb=True)))
    model.init_weights()
    ends = dict(weight=dict(bits=8), activation=dict(bits=8))
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=bits), activation=dict(bits=4),
        rules=[dict(match=name, **ends)
               for name in ('backbone.conv1', 'head.fc')]))
    model = make_deployable(model, example.shape[2:]).eval()
    gdrq_mm.calibrate(_Owner(model), [lambda: model(example)])
    return merge(model, example)


class _Owner(nn.Module):
    """``calibrate`` asks the model it is given for its state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        layer = next(each for each in model.modules()
                     if hasattr(each, 'weight_quantizer'))
        self.quantization_state = layer._shared[0]


# In a process of its own, with nothing but ONNX Runtime in it.
MEMORY = """
import sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
session = onnxruntime.InferenceSession(
    sys.argv[1], options, providers=['CPUExecutionProvider'])
size = int(sys.argv[2])
image = numpy.zeros((1, 3, size, size), numpy.float32)
session.run(None, {session.get_inputs()[0].name: image})
status = open('/proc/self/status').read()
print(1024 * int(status.partition('VmHWM:')[2].split()[0]))
"""


def peak_memory(path: Path, size: int) -> int:
    """Peak resident bytes of a process that loads and runs a file once."""
    return int(subprocess.run(
        [sys.executable, '-c', MEMORY, str(path), str(size)], check=True,
        capture_output=True, text=True).stdout)


@torch.no_grad()
def benchmark(args: argparse.Namespace) -> dict:
    example = 255 * torch.rand(1, 3, args.size, args.size)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        floats = Path(folder) / 'float.onnx'
        for weights, bits in (('int8', 4), ('int4', 4), ('int2', 2)):
            merged = build(args.depth, bits, example)
            path = Path(folder) / f'{weights}.onnx'
            integer = to_integer(merged, example)
            report = export_onnx(integer, example, path, weights=weights)
            row = dict(weight_bits=bits, size=report.size,
                       integer_kernels=len(report.kernels),
                       quantized_layers=len(integer.calls))
            row.update(speed_against_float(
                merged, path, example, args.rounds, args.threads))
            if not floats.exists():
                export_float(merged, example, floats)
            row['peak_memory'] = peak_memory(path, args.size)
            row['float_peak_memory'] = peak_memory(floats, args.size)
            rows[weights] = row
            print(f'{weights}: {row["integer_kernels"]} of '
                  f'{row["quantized_layers"]} layers are integer kernels; '
                  f'time {row["time_ratio"]:.2f} '
                  f'({row["time_ratio_least"]:.2f} to '
                  f'{row["time_ratio_greatest"]:.2f}) of float '
                  f'({row["ms"]:.1f} / {row["float_ms"]:.1f} ms); file '
                  f'{row["size"] / 1e6:.2f} / {row["float_size"] / 1e6:.2f} '
                  f'MB = 1/{row["float_size"] / row["size"]:.1f}; peak '
                  f'memory {row["peak_memory"] / 1e6:.0f} / '
                  f'{row["float_peak_memory"] / 1e6:.0f} MB', flush=True)
    return dict(
        model=f'ResNet-{args.depth}', size=args.size, threads=args.threads,
        rounds=args.rounds, onnxruntime=onnxruntime.__version__,
        torch=torch.__version__, machine=platform.machine(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(), rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--depth', type=int, default=18,
                        choices=(18, 34, 50))
    parser.add_argument('--size', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=50)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--json', help='write the figures there')
    args = parser.parse_args()
    if args.json and Path(args.json).exists():
        parser.error(f'{args.json} exists; remove it or give another name')
    figures = benchmark(args)
    if args.json:
        part = Path(f'{args.json}.part')
        part.write_text(json.dumps(figures, indent=1) + '\n')
        os.replace(part, args.json)


if __name__ == '__main__':
    main()
