"""Fig. 7 and 8 (a): weights and quantized loss by the factor k.

Usage: python tools/experiments/fig7_fig8_reshaping.py [--draw]

Trains a float network of three convolutions on scikit-learn's digits, reshaped
layer by layer with k = 2, 2.5, 3, 4 and not at all (inf), as the paper does
with ResNet-18 on CIFAR-100. Fig. 7: histograms and Kolmogorov-Smirnov distance
to the uniform distribution; Fig. 8 (a): quantized loss with the best clip
value (Eq. 4) at 2 to 8 bits. About four minutes on one core.
"""
import json

import torch
from records import environment, new_axes, parse, spread, write_json
from sklearn.datasets import load_digits
from torch import nn

import gdrq_mm
from gdrq_mm.analysis import ks_to_uniform, weight_histogram
from gdrq_mm.analysis.drawing import save_figure
from gdrq_mm.clip_search import search_clip
from gdrq_mm.functional import linear_quantize, quantized_loss
from gdrq_mm.training import get_state

KS = ['2', '2.5', '3', '4', 'inf']
BITS = range(2, 9)
LAYERS = dict(conv1='0', conv2='4', conv3='7')


def build(k):
    def block(inputs, outputs, kernel):
        return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2,
                          bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    model = nn.Sequential(
        *block(1, 64, 5), nn.MaxPool2d(2), *block(64, 48, 3),
        *block(48, 48, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(48, 10))
    # Without projection and threshold nothing acts on the float weights.
    scheme = dict(clip='search', projection=False) if k == 'inf' else \
        dict(k=float(k))
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=8, group_size=-1, **scheme),
        rules=[dict(match='12', skip=True)]))
    get_state(model).set_phase('reshape')
    return model


def train(model, seed, epochs, batch_size=64):
    """Test accuracy after training; weights are projected after each step."""
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 8 - 1, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images),
                           generator=torch.Generator().manual_seed(0))
    train_set, test_set = order[:1400], order[1400:]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), .1, momentum=.9,
                                weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(train_set) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, .1, steps)
    model.train()
    for _ in range(epochs):
        shuffled = train_set[torch.randperm(len(train_set),
                                            generator=generator)]
        for chosen in shuffled.split(batch_size):
            if len(chosen) < batch_size:
                continue
            loss = nn.functional.cross_entropy(
                model(images[chosen]), labels[chosen], label_smoothing=.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        found = model(images[test_set]).argmax(1)
    return float((found == labels[test_set]).float().mean())


def best_loss(weight, bits):
    clip = search_clip(weight, bits)[0]
    return float(quantized_loss(weight, linear_quantize(weight, clip, bits)))


def run(seeds, epochs):
    rows = []
    for k in KS:
        accuracy, layers = [], {name: [] for name in LAYERS}
        for seed in seeds:
            torch.manual_seed(seed)
            model = build(k)
            accuracy.append(train(model, seed, epochs))
            for name, key in LAYERS.items():
                weight = model[int(key)].weight.detach()
                density, edges = weight_histogram(weight, bins=40)
                layers[name].append(dict(
                    ks=ks_to_uniform(weight), density=density.tolist(),
                    edges=edges.tolist(), mean_abs=float(weight.abs().mean()),
                    loss=[best_loss(weight, bits) for bits in BITS]))
        rows.append(dict(k=k, accuracy=spread(accuracy), layers={
            name: dict(
                ks_to_uniform=spread([one['ks'] for one in found]),
                mean_abs=spread([one['mean_abs'] for one in found]),
                density=found[0]['density'], edges=found[0]['edges'],
                quantized_loss={
                    str(bits): spread([one['loss'][index] for one in found])
                    for index, bits in enumerate(BITS)})
            for name, found in layers.items()}))
        print(f'k = {k}: accuracy {rows[-1]["accuracy"]["mean"]:.3f}',
              flush=True)
    return rows


def draw(result, path):
    rows = result['rows']
    figure, axes = new_axes(3, len(rows), sharex='row', sharey='row')
    for line, name in zip(axes, ('conv1', 'conv2')):
        line[0].set_ylabel(f'{name}, density')
        for axis, row in zip(line, rows):
            layer = row['layers'][name]
            axis.stairs(layer['density'], layer['edges'], fill=True)
            axis.plot([-1, -1, 1, 1], [0, .5, .5, 0], 'k--', linewidth=1)
            axis.set_title(f'k = {row["k"]}: KS '
                           f'{layer["ks_to_uniform"]["mean"]:.3f}')
            axis.set_xlabel('w / T, T = 2 mean|w|')
    for axis, name in zip(axes[2], LAYERS):
        for row in rows:
            losses = row['layers'][name]['quantized_loss']
            axis.semilogy([int(bits) for bits in losses],
                          [one['mean'] for one in losses.values()], '.-',
                          label=f'k = {row["k"]}')
        axis.set_title(f'{name}: quantized loss')
        axis.set_xlabel('bits')
        axis.legend(fontsize='x-small')
    for axis in axes[2, len(LAYERS):]:
        axis.remove()
    figure.suptitle('Float models reshaped with k (Fig. 7), quantized with '
                    'the best clip value (Fig. 8 a)')
    save_figure(figure, path)


def main():
    parser = parse(__doc__, 'fig7_fig8_reshaping')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--epochs', type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.draw:
        rows = run(args.seeds, args.epochs)
        write_json(args.out, dict(
            experiment='fig7_fig8_reshaping', rows=rows,
            config=dict(seeds=args.seeds, epochs=args.epochs, k=KS,
                        group_size=-1, data='scikit-learn digits, 1400 of '
                        '1797 images'),
            environment=environment()))
    result = json.loads(args.out.read_text())
    draw(result, args.image)
    for row in result['rows']:
        for name, layer in row['layers'].items():
            losses = ' '.join(f'{bits}: {one["mean"]:.4f}' for bits, one in
                              layer['quantized_loss'].items())
            print(f'k = {row["k"]:3} {name}: KS '
                  f'{layer["ks_to_uniform"]["mean"]:.3f}, QL {losses}')


if __name__ == '__main__':
    main()
