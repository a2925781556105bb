"""What low-bit products of activations cost a small vision transformer.

Usage: python tools/experiments/attention_products.py

A ViT of mmpretrain learns the handwritten digits of scikit-learn in float,
every pixel a token. Then its attention products alone are quantized, by
calibration; and with weights and activations of 4 bits beside them it is
trained further.
"""
import argparse
import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from mmpretrain.models import VisionTransformer
from records import ROOT, environment, write_json
from sklearn.datasets import load_digits
from torch import Tensor, nn

import gdrq_mm
from gdrq_mm.modes import eval_mode
from gdrq_mm.plan import count_macs, percent

PRODUCTS = {
    'float': None, '8': dict(bits=8), '4': dict(bits=4),
    "8, threshold='mean'": dict(bits=8, threshold='mean'),
    "4, threshold='mean'": dict(bits=4, threshold='mean')}
W4A4 = dict(weight=dict(bits=4), activation=dict(bits=4, threshold='mse'),
            rules=[dict(match=match, weight=dict(bits=8), activation=dict(
                bits=8)) for match in ('0.patch_embed.projection', '1')])
BATCH = 100


def read() -> tuple:
    """Images and classes to train with, and those to test with."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    labels = torch.from_numpy(digits.target)
    return (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


class Tokens(VisionTransformer):
    """The class token alone, a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


def make_model(classes: int) -> nn.Module:
    backbone = Tokens(
        arch=dict(embed_dims=48, num_layers=3, num_heads=4,
                  feedforward_channels=96),
        in_channels=1, img_size=8, patch_size=1)
    backbone.init_weights()
    return nn.Sequential(backbone, nn.Linear(48, classes))


def train(model: nn.Module, data: tuple, epochs: int, lr: float) -> None:
    images, labels = data
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr,
                                  weight_decay=.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, epochs * (len(images) // BATCH))
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def scores(model: nn.Module, images: Tensor) -> Tensor:
    with eval_mode(model):
        return torch.cat([model(each) for each in images.split(BATCH)])


def top1(found: Tensor, labels: Tensor) -> float:
    return float((found.argmax(1) == labels).float().mean())


def measure(args: argparse.Namespace, seed: int) -> list:
    torch.manual_seed(seed)
    data, test = read()
    model = make_model(10)
    train(model, data, args.epochs, 2e-3)
    floats = scores(model, test[0])
    rows = []
    for name, scheme in PRODUCTS.items():
        row = dict(products=name, seed=seed, float_top1=top1(floats, test[1]))
        if scheme:
            alone = copy.deepcopy(model)
            gdrq_mm.quantize_(alone, dict(products=scheme))
            gdrq_mm.calibrate(alone, [
                lambda rows=rows, alone=alone: alone(data[0][rows])
                for rows in torch.randperm(len(data[0])).split(BATCH)])
            found = scores(alone, test[0])
            row.update(alone_top1=top1(found, test[1]), alone_error=float(
                (found - floats).norm() / floats.norm()))
        torch.manual_seed(seed + 1)
        low_bit = copy.deepcopy(model)
        gdrq_mm.quantize_(low_bit, dict(W4A4, products=scheme))
        train(low_bit, data, args.epochs_low_bit, 1e-3)
        count = count_macs(low_bit, lambda model=low_bit: model(test[0][:10]))
        row.update(
            top1=top1(scores(low_bit, test[0]), test[1]),
            share=(count.low_bit + count.low_bit_between)
            / (count.parametric + count.between_activations),
            between_share=count.between_activations
            / (count.parametric + count.between_activations))
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'results'
                        / 'attention_products.json')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--epochs', type=int, default=30)
    parser.add_argument('--epochs-low-bit', type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for seed in args.seeds for row in measure(args, seed)]
    write_json(args.out, dict(
        experiment='attention_products', environment=environment(),
        config=dict(seeds=args.seeds, epochs=args.epochs,
                    epochs_low_bit=args.epochs_low_bit), rows=rows))
    print('| products | low-bit MACs | top-1 at [4,4] | top-1 of them alone '
          '| output error of them alone |\n| --- | --- | --- | --- | --- |')
    for name in PRODUCTS:
        chosen = [row for row in rows if row['products'] == name]

        def mean(key, chosen=chosen):
            found = [row[key] for row in chosen if key in row]
            return percent(sum(found) / len(found)) if found else '-'

        print(f'| {name} | {mean("share")} | {mean("top1")} | '
              f'{mean("alone_top1")} | {mean("alone_error")} |')


if __name__ == '__main__':
    main()
