"""Quantize a float checkpoint without training.

Activation thresholds and batch normalization are set from a few training
batches. CONFIG says the quantization, in a GDRQHook or in a QuantizedModel.
The same command gives the same checkpoint, random augmentation or not.

example:
  gdrq calibrate my_w4a4.py work_dirs/my_float/epoch_2.pth calibrated.pth
"""
import argparse

from gdrq_mm.cli import run_tool
from gdrq_mm.openmmlab.calibrate import calibrate_checkpoint
from gdrq_mm.openmmlab.scopes import ConfigOptions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config with the quantization')
    parser.add_argument('checkpoint', help='of the float model')
    parser.add_argument('out', help='checkpoint to write')
    parser.add_argument('--batches', type=int, default=32,
                        help='of the training data (default: 32)')
    parser.add_argument('--no-bn', action='store_true',
                        help='keep the statistics of batch normalization')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions)
    args = parser.parse_args()
    used = calibrate_checkpoint(
        args.config, args.checkpoint, args.out, args.batches, not args.no_bn,
        args.cfg_options)
    batches = 'batch' if used == 1 else 'batches'
    print(f'calibrated with {used} {batches}: {args.out}')


if __name__ == '__main__':
    run_tool(main)
