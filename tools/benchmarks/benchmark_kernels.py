"""What the kernels cost on their own, beside ReLU and a copy.

Usage:
    python tools/benchmarks/benchmark_kernels.py [--device cuda]

prints microseconds (medians of calls that take turns), and what a quantized
layer adds to a float one when there is next to nothing to compute.
"""
import argparse
import importlib
import time
from collections import defaultdict
from statistics import median

import torch
from torch import nn

from gdrq_mm import kernels, quantize_
from gdrq_mm.kernels import eager


def microseconds(calls: dict, device: str, rounds: int = 50) -> dict:
    """Median time of every call; they take turns."""
    found = defaultdict(list)
    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
    for _ in range(rounds):
        for name, call in calls.items():
            wait()
            begin = time.perf_counter()
            call()
            wait()
            found[name].append((time.perf_counter() - begin) * 1e6)
    return {name: median(values) for name, values in found.items()}


def kernel_calls(values: int, device: str) -> dict:
    x, out = torch.randn(2, values, device=device)
    clip = torch.tensor(1., device=device)
    seen = torch.zeros(3, device=device)
    fused = importlib.import_module(f'gdrq_mm.kernels.{device}')
    return {
        'fused': lambda: fused.quantize(x, clip, 4, False, -1, seen, 'input'),
        'plain PyTorch': lambda: eager.quantize(x, clip, 4, False, -1, seen),
        'ReLU': lambda: torch.relu(x),
        'copy': lambda: out.copy_(x)}


def layer_parts(site: str, device: str, layers: int = 10) -> dict:
    """Forward, backward and step of a layer of 4x4 weights."""
    model = nn.Sequential(*(
        module for _ in range(layers) for module in
        (nn.Conv2d(4, 4, 1, bias=False), nn.ReLU(inplace=True)))).to(device)
    if site != 'float':
        quantize_(model, dict(weight=dict(bits=4),
                              activation=dict(bits=4, site=site)))
    optimizer = torch.optim.SGD(model.parameters(), 1e-5)
    x, state = torch.randn(1, 4, 4, 4, device=device), {}

    def forward():
        optimizer.zero_grad()
        state['y'] = model(x)

    def backward():
        state['y'].sum().backward()

    found = microseconds(dict(forward=forward, backward=backward,
                              step=optimizer.step), device, rounds=300)
    return {name: value / layers for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f'torch {torch.__version__}, one thread, {args.device}, kernels: '
          f'{kernels.status(args.device)[1]}')
    for values in (1 << 6, 1 << 17, 1 << 20, 512 * 512 * 9, 1 << 25):
        found = microseconds(kernel_calls(values, args.device), args.device)
        print(f'{values:8} values: ' + ', '.join(
            f'{name} {value:.1f}' for name, value in found.items()))
    for site in ('float', 'input', 'relu'):
        found = layer_parts(site, args.device)
        print(f'{site:>8} layer: ' + ', '.join(
            f'{name} {value:.1f}' for name, value in found.items()))


if __name__ == '__main__':
    main()
