"""Quantize a float checkpoint without training: thresholds and batch
normalization from a few training batches.

Usage: python tools/calibrate.py CONFIG CHECKPOINT OUT [--batches 32]
           [--no-bn] [--cfg-options ...]

CONFIG says the quantization, in a GDRQHook or in a QuantizedModel. The same
command gives the same checkpoint, random augmentation or not.
"""
import argparse

from mmengine.config import DictAction

from gdrq_mm.openmmlab.calibrate import calibrate_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('config', help='config with the quantization')
    parser.add_argument('checkpoint', help='of the float model')
    parser.add_argument('out', help='checkpoint to write')
    parser.add_argument('--batches', type=int, default=32,
                        help='of the training data (default: 32)')
    parser.add_argument('--no-bn', action='store_true',
                        help='keep the statistics of batch normalization')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    try:
        used = calibrate_checkpoint(
            args.config, args.checkpoint, args.out, args.batches,
            not args.no_bn, args.cfg_options)
    except (OSError, ValueError, RuntimeError) as error:
        parser.exit(2, f'calibrate: {error}\n')
    print(f'calibrated with {used} batches: {args.out}')


if __name__ == '__main__':
    main()
