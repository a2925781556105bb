"""How the price of training grows with bits, groups, images and depth.

Usage:
    python tools/benchmarks/benchmark_growth.py [--rounds 15] [--json OUT]

From ResNet-18 at 64x64, batch 8, W4A4, group size 4, one setting at a time is
changed. Each quantized step takes turns with the step of the float model of
the same depth on the same images; the ratio of the two is what counts.
"""
import argparse
import dataclasses
import sys
from pathlib import Path

import torch
from benchmark_training import (
    WARM_UP,
    age,
    environment,
    ratios,
    take_turns,
    write_result,
)
from mmengine.logging import MMLogger
from workloads import WORKLOADS, training_step

from gdrq_mm import quantize_

BASE = dict(bits=4, group_size=4, images=64, depth=18)
SETTINGS = dict(bits=[2, 3, 4, 8], group_size=[1, 4, 16, -1],
                images=[32, 64, 128, 224], depth=[18, 34, 50, 101])
FEATURES = {18: 512, 34: 512, 50: 2048, 101: 2048}


def workload_of(images: int, depth: int):
    return dataclasses.replace(
        WORKLOADS['resnet18'], shape=(images, images), changes={
            'model.backbone.depth': depth,
            'model.head.in_channels': FEATURES[depth]})


def step_of(workload, quantization=None):
    model = workload.build()
    if quantization:
        quantize_(model, dict(quantization, rules=[
            dict(match=workload.stem, skip=True)]))
    step = training_step(model, workload.make_batch(model.scope))
    for _ in range(WARM_UP if quantization else 2):
        step()
    if quantization:
        age(model)
    return step


def measure(setting: str, args) -> dict:
    """Ratios to float by the value of one setting."""
    cases = {value: {**BASE, setting: value} for value in SETTINGS[setting]}
    found = {}
    # Settings of the scheme share one float model and take turns together.
    together = [list(cases)] if setting in ('bits', 'group_size') else [
        [value] for value in cases]
    for values in together:
        workload = workload_of(cases[values[0]]['images'],
                               cases[values[0]]['depth'])
        steps = dict(float=step_of(workload))
        for value in values:
            case = cases[value]
            steps[value] = step_of(workload, dict(
                weight=dict(bits=case['bits'],
                            group_size=case['group_size']),
                activation=dict(bits=case['bits'])))
        seconds = take_turns(steps, args.rounds, 'cpu', args.seed)
        measured = ratios(seconds)
        for value in values:
            found[value] = dict(
                measured[value],
                float_seconds=measured['float']['seconds'])
            low, high = found[value]['quartiles']
            print(f'{setting:>10} {value:4}  '
                  f'float {measured["float"]["seconds"] * 1e3:6.0f} ms  '
                  f'ratio {found[value]["ratio"]:.3f} '
                  f'({low:.3f} to {high:.3f})', flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--json', type=Path, help='where the figures go')
    args = parser.parse_args()
    if args.json and args.json.exists():
        parser.error(f'{args.json} exists; name another file or move it')
    MMLogger.get_instance('benchmark', log_level='ERROR')
    torch.set_num_threads(args.threads)
    result = dict(
        command=sys.argv, environment=environment('cpu'), seed=args.seed,
        threads=args.threads, rounds=args.rounds, base=BASE,
        settings={setting: measure(setting, args) for setting in SETTINGS})
    if args.json:
        write_result(args.json, result)


if __name__ == '__main__':
    main()
