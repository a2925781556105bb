"""Publish a trained quantized model: a small file and its config.

Usage: python tools/publish_model.py CONFIG CHECKPOINT OUT_DIR [--latent]
"""
import argparse
import os

from mmengine.config import DictAction

from gdrq_mm.publish import publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='the config of the training')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('out_dir', help='folder of the published files')
    parser.add_argument('--latent', action='store_true',
                        help='keep float weights, to continue training')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        help='those of the training')
    args = parser.parse_args()
    try:
        paths = publish(args.config, args.checkpoint, args.out_dir,
                        args.latent, args.cfg_options)
    except (OSError, ValueError, RuntimeError) as error:
        parser.exit(2, f'publish_model: {error}\n')
    before = os.path.getsize(args.checkpoint)
    after = os.path.getsize(paths[0])
    print(f'training checkpoint {before / 1e6:.2f} MB -> published '
          f'{after / 1e6:.2f} MB')
    print(*paths, sep='\n')


if __name__ == '__main__':
    main()
