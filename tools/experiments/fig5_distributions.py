"""Fig. 5: quantized loss of Laplace, Gaussian and uniform samples.

Usage: python tools/experiments/fig5_distributions.py [--draw]

The best clip value (Eq. 4, exact) and its quantized loss (Eq. 3) for 1000
samples, as in the paper, and for 100000, with the 15 levels of Eq. 2 at 4 bits
and with 17, which the paper's figures fit.
"""
import json

import numpy as np
import torch
from records import environment, new_axes, parse, spread, write_json

from gdrq_mm.analysis.drawing import save_figure
from gdrq_mm.clip_search import search_clip
from gdrq_mm.functional import linear_quantize, quantized_loss

SAMPLES = dict(
    laplace=lambda rng, n: rng.laplace(size=n),
    gaussian=lambda rng, n: rng.normal(size=n),
    uniform=lambda rng, n: rng.uniform(-1, 1, size=n))
PAPER = dict(laplace=.133, uniform=.059)  # no figure is given for Gaussian
STEPS = {15: 7, 17: 8}  # levels -> steps between zero and the clip value


def quantize(x, clip, steps):
    """Eq. 1 with any number of steps."""
    step = clip / steps
    return (x.clamp(-clip, clip) / step).round() * step


def run(seeds, sizes):
    rows = []
    for name, draw in SAMPLES.items():
        for size in sizes:
            for levels, steps in STEPS.items():
                losses, ratios = [], []
                for seed in seeds:
                    rng = np.random.default_rng(seed)
                    x = torch.from_numpy(draw(rng, size))
                    clip = search_clip(x[None], levels=steps)[0]
                    if levels == 15:  # the functions that train do the same
                        assert torch.allclose(quantize(x, clip, steps),
                                              linear_quantize(x, clip, 4))
                    losses.append(quantized_loss(
                        x, quantize(x, clip, steps)))
                    ratios.append(clip / x.abs().mean())
                rows.append(dict(distribution=name, samples=size,
                                 levels=levels, quantized_loss=spread(losses),
                                 clip_over_mean=spread(ratios)))
    return rows


def draw(result, path):
    figure, axes = new_axes(1, 4)
    seed = result['config']['seeds'][0]
    for axis, (name, sample) in zip(axes[0], SAMPLES.items()):
        x = sample(np.random.default_rng(seed), 1000)
        row = next(row for row in result['rows'] if row['levels'] == 15
                   and row['distribution'] == name and row['samples'] == 1000)
        clip = row['clip_over_mean']['values'][0] * np.abs(x).mean()
        axis.hist(x, 60, color='tab:blue')
        for level in np.linspace(-clip, clip, 15):
            axis.axvline(level, color='red', linewidth=.6)
        axis.set_title(f'{name}: QL {row["quantized_loss"]["mean"]:.3f}')
    axis = axes[0, 3]
    for index, levels in enumerate(STEPS):
        means = [next(row for row in result['rows']
                      if (row['distribution'], row['levels'],
                          row['samples']) == (name, levels, 1000))
                 ['quantized_loss']['mean'] for name in SAMPLES]
        axis.bar(np.arange(3) + .4 * index - .2, means, .38,
                 label=f'{levels} levels')
    axis.plot([0, 2], [PAPER['laplace'], PAPER['uniform']], 'k_',
              markersize=30, label='paper')
    axis.set_xticks(range(3), list(SAMPLES))
    axis.set_ylabel('quantized loss')
    axis.legend(fontsize='small')
    figure.suptitle('Best 15 levels for 1000 samples (red); quantized loss')
    save_figure(figure, path)


def main():
    parser = parse(__doc__, 'fig5_distributions')
    parser.add_argument('--seeds', type=int, nargs='+',
                        default=list(range(10)))
    parser.add_argument('--sizes', type=int, nargs='+',
                        default=[1000, 100000])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.draw:
        config = dict(seeds=args.seeds, sizes=args.sizes)
        write_json(args.out, dict(
            experiment='fig5_distributions', config=config, paper=PAPER,
            environment=environment(), rows=run(args.seeds, args.sizes)))
    result = json.loads(args.out.read_text())
    draw(result, args.image)
    for row in result['rows']:
        loss, ratio = row['quantized_loss'], row['clip_over_mean']
        print(f'{row["distribution"]:9} {row["samples"]:6} samples, '
              f'{row["levels"]} levels: QL {loss["mean"]:.4f} '
              f'({loss["min"]:.4f} to {loss["max"]:.4f}), best clip '
              f'{ratio["mean"]:.2f} mean|x|')


if __name__ == '__main__':
    main()
