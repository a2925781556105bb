"""Publish a trained quantized model: a small file and its config.

Prints the sizes of the float model's file and of the published one, then the
paths of the published checkpoint and of its config.

example:
  gdrq publish my_w4a4.py work_dirs/my_w4a4/epoch_2.pth zoo
"""
import argparse
import os

import torch

from gdrq_mm.cli import run_tool
from gdrq_mm.openmmlab.publish import publish
from gdrq_mm.openmmlab.scopes import ConfigOptions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the training')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('out_dir', help='folder of the published files')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--packed', action='store_true',
                      help='weights as codes of their bit width (default)')
    form.add_argument('--latent', action='store_true',
                      help='keep float weights, to continue training')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions,
                        help='those of the training')
    args = parser.parse_args()
    paths = publish(args.config, args.checkpoint, args.out_dir, args.latent,
                    args.cfg_options)
    before = torch.load(paths[0], map_location='cpu',
                        weights_only=True)['meta']['float_bytes']
    after = os.path.getsize(paths[0])
    print(f'float model {before / 1e6:.2f} MB -> published '
          f'{"latent" if args.latent else "packed"} {after / 1e6:.2f} MB '
          f'(1/{before / after:.2f})')
    print(*paths, sep='\n')


if __name__ == '__main__':
    run_tool(main)
