"""Time of the exact clip search on the weights of ResNet-50.

Usage: python tools/benchmarks/benchmark_clip_search.py [--group-size 1]
           [--bits 2 3 4] [--threads 1]

prints wall and CPU time by bits for all convolutions and the classifier, with
the weights that torchvision initializes (the time hardly depends on them).
"""
import argparse
import time

import torch
from torch import nn
from torchvision.models import resnet50

from gdrq_mm.clip_search import search_clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--bits', type=int, nargs='+', default=[2, 3, 4])
    parser.add_argument('--group-size', type=int, default=1)
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    weights = [layer.weight for layer in resnet50().modules()
               if isinstance(layer, (nn.Conv2d, nn.Linear))]
    number = sum(weight.numel() for weight in weights)
    print(f'ResNet-50: {len(weights)} layers, {number} weights, group size '
          f'{args.group_size}, {args.threads} threads, torch '
          f'{torch.__version__}')
    for bits in args.bits:
        wall, cpu = time.perf_counter(), time.process_time()
        groups = sum(len(search_clip(weight, bits, args.group_size))
                     for weight in weights)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f'{bits} bits, {groups} groups: {wall:.1f} s wall, {cpu:.1f} s '
              'CPU')


if __name__ == '__main__':
    main()
