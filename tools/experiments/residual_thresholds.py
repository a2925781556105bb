"""8-bit outputs of residual branches: error and clipping by threshold.

Usage: python tools/experiments/residual_thresholds.py CONFIG CHECKPOINT
       [--images 64] [--cfg-options ...] [--out JSON]

CONFIG has residual.outputs, CHECKPOINT is that of the float model. For each
output of some training images: the squared error of 8 bits over the squared
values, in parts per 100000, and the share of values beyond the threshold, for
thresholds of some multiples of the default of activations and for the maximum.
"""
import argparse
import json
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import load_checkpoint
from records import environment, write_json

from gdrq_mm.config import QuantConfig
from gdrq_mm.deployable import first_images, make_deployable
from gdrq_mm.functional import linear_quantize
from gdrq_mm.openmmlab.publish import quantization_of
from gdrq_mm.openmmlab.scopes import build_model
from gdrq_mm.plan import find_outputs
from gdrq_mm.quantizers.scale_clip import default_k

MULTIPLES = (1., 1.5, 2., 3., 4.)
STRIDE = 3  # of the values that are looked at


@torch.no_grad()
def outputs_of(args) -> dict:
    """Values of every output, by the name of the module."""
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    residual = QuantConfig.from_dict(quantization_of(cfg)).residual
    model = build_model(cfg)  # hooks convert: this one stays float
    model.eval()  # some return nothing
    load_checkpoint(model, args.checkpoint, map_location='cpu')
    values = {}

    def watch(name):
        def hook(module, inputs, output):  # sums write into it later
            values.setdefault(name, []).append(
                output.flatten()[::STRIDE].double())
        return hook

    for name, module in find_outputs(model, residual.outputs).items():
        module.register_forward_hook(watch(name))
    for image in first_images(cfg, args.images):
        make_deployable(model)(image)
    return {name: torch.cat(parts) for name, parts in values.items()}


def row_of(name: str, x: torch.Tensor) -> dict:
    signed = bool((x < 0).any())
    mean = x.abs().mean()
    clips = {f'{multiple:g}': multiple * default_k(8, signed) * mean
             for multiple in MULTIPLES}
    clips['max'] = x.abs().max()
    row = dict(output=name, signed=signed, max_over_mean=float(
        x.abs().max() / mean), error={}, clipped={})
    for key, clip in clips.items():
        rounded = linear_quantize(x, clip, 8, signed)
        row['error'][key] = float(
            1e5 * (rounded - x).square().sum() / x.square().sum())
        row['clipped'][key] = float((x.abs() > clip).double().mean())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--images', type=int, default=64)
    parser.add_argument('--out', type=Path,
                        help='write the figures there as well')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    if args.out and args.out.exists():
        parser.error(f'{args.out} exists; remove it or give another name')
    rows = [row_of(*item) for item in outputs_of(args).items()]
    keys = rows[0]['error']
    mean = {key: sum(row['error'][key] for row in rows) / len(rows)
            for key in keys}
    worst = {key: max(row['error'][key] for row in rows) for key in keys}
    for row in rows:
        print(row['output'], json.dumps({
            key: round(value, 2) for key, value in row['error'].items()}))
    for title, values in (('mean', mean), ('worst', worst)):
        print(title, json.dumps({key: round(value, 1)
                                 for key, value in values.items()}))
    if args.out:
        write_json(args.out, dict(
            environment=environment(), config=args.config,
            checkpoint=args.checkpoint, images=args.images, rows=rows,
            mean=mean, worst=worst))


if __name__ == '__main__':
    main()
