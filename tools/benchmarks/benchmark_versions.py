"""Whether a version became slower: training steps and loading of files.

Usage:
    git worktree add /tmp/before COMMIT
    python tools/benchmarks/benchmark_versions.py /tmp/before
        [--rounds 5] [--json OUT.json]

Both versions, each in a process of its own, train ResNet-50 as float and at
W4A4, and load its files into the model as mmengine does: the weights as a
training writes them and packed, each written by the version that loads it,
and those of the float model into the float model. The processes and what they
measure take turns, in random order. Times are CPU time (of one thread), which
other processes on the machine change little.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Callable, Dict

import numpy as np

ROOT = Path(__file__).parents[2]
WARM_UP = 12  # steps; thresholds settle after ten
STEPS = 5
LOADS = 3
IMAGES = 2, 3, 96, 96


def build(quantized: bool):
    import torch
    from mmpretrain import get_model

    import gdrq_mm
    torch.manual_seed(0)
    model = get_model('resnet50_8xb32_in1k').train()
    if quantized:
        gdrq_mm.quantize_(model, dict(
            weight=dict(bits=4), activation=dict(bits=4),
            rules=[dict(match='backbone.conv1', skip=True)]))
    return model


def make_step(model) -> Callable:
    import torch
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=.9)
    images = torch.randn(IMAGES)

    def step():
        optimizer.zero_grad()
        model(images)[0].square().mean().backward()
        optimizer.step()

    return step


def make_loads(folder: Path, model) -> Dict[str, Callable]:
    """Write files of a trained model; how each is loaded."""
    import torch
    from mmengine.runner import load_checkpoint

    from gdrq_mm.deploy import pack
    plain = build(quantized=False)
    contents = dict(float=plain.state_dict(), training=model.state_dict(),
                    packed=pack(model))
    loads = {}
    for name, weights in contents.items():
        path = folder / f'{name}.pth'
        torch.save(dict(meta={}, state_dict=weights), path)
        target = plain if name == 'float' else model
        loads[f'load {name}'] = lambda path=path, target=target: \
            load_checkpoint(target, str(path), map_location='cpu',
                            logger='silent')
    return loads


def cpu_seconds(function: Callable) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


def measure() -> dict:
    """Medians of this process: seconds of all it does."""
    import torch
    torch.set_num_threads(1)
    model = build(quantized=True)
    steps = {'float step': make_step(build(quantized=False)),
             'quantized step': make_step(model)}
    for _ in range(WARM_UP):
        steps['quantized step']()
    for module in model.modules():  # where a version has first steps
        getattr(module, 'end_first_looks', lambda: None)()
    steps['float step']()
    times = {name: [] for name in steps}
    for _ in range(STEPS):
        for name, step in random.sample(sorted(steps.items()), len(steps)):
            times[name].append(cpu_seconds(step))
    with tempfile.TemporaryDirectory() as folder:
        loads = make_loads(Path(folder), model)
        for load in loads.values():
            load()
        for _ in range(LOADS):
            for name, load in random.sample(sorted(loads.items()),
                                            len(loads)):
                times.setdefault(name, []).append(cpu_seconds(load))
    found = {name: median(values) for name, values in times.items()}
    found['step ratio'] = found['quantized step'] / found['float step']
    return found


def measured(checkout: Path) -> dict:
    """The same of a version, in a process of its own."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', __file__, '--worker'], check=True,
        stdout=subprocess.PIPE, text=True, env=dict(
            os.environ, PYTHONPATH=str(checkout), OMP_NUM_THREADS='1'))
    found = json.loads(done.stdout.splitlines()[-1])
    if Path(found.pop('package')).parents[1] != checkout.resolve():
        sys.exit(f'{checkout} is not what is imported from there')
    return found


def table(rounds: list) -> str:
    """Medians and the ratios of the rounds."""
    lines = ['| what | before | now | now / before (quartiles) |',
             '| ---- | ------ | --- | ------------------------ |']
    for name in rounds[0]['now']:
        ratios = [each['now'][name] / each['before'][name]
                  for each in rounds]
        low, middle, high = np.quantile(ratios, (.25, .5, .75))
        before, now = (median(each[key][name] for each in rounds)
                       for key in ('before', 'now'))
        unit = '' if name == 'step ratio' else ' s'
        lines.append(f'| {name} | {before:.3f}{unit} | {now:.3f}{unit} | '
                     f'{middle:.2f} ({low:.2f} to {high:.2f}) |')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('before', type=Path, nargs='?',
                        help='checkout of the version to compare with')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--json')
    parser.add_argument('--worker', action='store_true',
                        help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        import gdrq_mm
        print(json.dumps(dict(measure(), package=gdrq_mm.__file__)))
        return
    if args.before is None or args.rounds < 2:
        parser.error('give the checkout of a version, and 2 rounds or more')
    rounds = []
    for number in range(args.rounds):
        order = [('before', args.before.resolve()), ('now', ROOT)]
        rounds.append({name: measured(path) for name, path in
                       random.sample(order, 2)})
        print(f'round {number + 1} of {args.rounds}', file=sys.stderr)
        if args.json:
            Path(args.json).write_text(json.dumps(rounds, indent=1) + '\n')
    print(table(rounds))


if __name__ == '__main__':
    main()
