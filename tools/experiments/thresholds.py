"""Squared error of activations by the kind of threshold.

Usage: python tools/experiments/thresholds.py [--draw]

Normal values go through an activation function, 30 batches of them move a
threshold; what counts is the squared error of another batch over its energy.
"""
import json

import numpy as np
import torch
import torch.nn.functional as F
from records import environment, new_axes, parse, spread, write_json

from gdrq_mm.analysis.drawing import save_figure
from gdrq_mm.quantizers import ActivationQuantizer, ScaleClipActivation

FUNCTIONS = dict(relu=F.relu, none=lambda x: x, silu=F.silu, gelu=F.gelu,
                 hardswish=F.hardswish)
KINDS = {
    'mean': dict(threshold='mean'), 'nonzero': dict(threshold='nonzero'),
    'mse': dict(threshold='mse', asymmetric=False),
    'mse, zero point': dict(threshold='mse', asymmetric=True)}
BATCHES, VALUES = 30, 20000


def quantizer_of(bits: int, options: dict) -> ActivationQuantizer:
    return ScaleClipActivation.build(
        ScaleClipActivation.Scheme(bits=bits, **options))


def error(function, bits: int, options: dict, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    quantizer = quantizer_of(bits, options)
    for _ in range(BATCHES):
        quantizer.observe(function(torch.randn(VALUES, generator=generator)))
        type(quantizer).update_([quantizer])
    x = function(torch.randn(VALUES, generator=generator))
    return (quantizer(x) - x).square().sum() / x.square().sum()


def run(seeds, widths):
    return [dict(function=name, bits=bits, threshold=kind,
                 relative_squared_error=spread(
                     error(function, bits, options, seed) for seed in seeds))
            for name, function in FUNCTIONS.items() for bits in widths
            for kind, options in KINDS.items()]


def draw(result, path):
    widths = result['config']['bits']
    figure, axes = new_axes(1, len(widths))
    places = np.arange(len(FUNCTIONS))
    for axis, bits in zip(axes[0], widths):
        for index, kind in enumerate(KINDS):
            axis.bar(places + .2 * index - .3, [
                row['relative_squared_error']['mean']
                for row in result['rows']
                if (row['bits'], row['threshold']) == (bits, kind)], .2,
                label=kind)
        axis.set_xticks(places, list(FUNCTIONS), rotation=30)
        axis.set_yscale('log')
        axis.set_title(f'{bits} bits')
    axes[0, 0].set_ylabel('squared error / energy')
    axes[0, -1].legend(fontsize='small')
    save_figure(figure, path)


def main():
    parser = parse(__doc__, 'thresholds')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--bits', type=int, nargs='+', default=[2, 4, 8])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.draw:
        config = dict(seeds=args.seeds, bits=args.bits, batches=BATCHES,
                      values=VALUES)
        write_json(args.out, dict(
            experiment='thresholds', config=config,
            environment=environment(), rows=run(args.seeds, args.bits)))
    result = json.loads(args.out.read_text())
    draw(result, args.image)
    print(f'| function | bits | {" | ".join(KINDS)} |')
    print('| --- ' * (len(KINDS) + 2) + '|')
    for name in FUNCTIONS:
        for bits in result['config']['bits']:
            errors = [f'{row["relative_squared_error"]["mean"]:.2g}'
                      for row in result['rows']
                      if (row['function'], row['bits']) == (name, bits)]
            print(f'| {name} | {bits} | {" | ".join(errors)} |')


if __name__ == '__main__':
    main()
