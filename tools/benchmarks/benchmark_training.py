"""What quantization-aware training costs, as ratios to float training.

Usage:
    python tools/benchmarks/benchmark_training.py [--models resnet18 ...]
        [--rounds 15] [--json OUT] [--profile]
        [--rows float gdrq_input] [--device cuda] [--batch 64]
        [--autocast bfloat16]

Every model is trained as float, by GDRQ (both activation sites, and the first
with the float model as teacher) and by the peers that are installed, on the
same batch. Steps of all rows take turns in
random order, so that a machine that slows down slows all of them: the ratio
of each step to the float step of its round is what counts. Peak memory is
that of a process of its own for each row.
"""
import argparse
import copy
import importlib.util
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from mmengine.logging import MMLogger
from peers import PEERS
from workloads import WORKLOADS, evaluation_step, training_step

import gdrq_mm
from gdrq_mm import QuantConfig, kernels, quantize_
from gdrq_mm.openmmlab.head_outputs import find_head_outputs
from gdrq_mm.plan import make_plan, trace_layers
from gdrq_mm.quantizers import QUANTIZERS
from gdrq_mm.training import Distillation, DistillConfig, get_state
from gdrq_mm.training import step as training_steps

# What a row changes in the config of weights and of activations.
SITES = dict(gdrq_input=({}, {}), gdrq_relu=({}, dict(site='relu')))
DISTILL = 'gdrq_distill'  # the first of them, with its float model as teacher
OPTIONS = dict(
    first_steps=({}, {}),
    odd=(dict(levels='odd'), {}), search=(dict(clip='search'), {}),
    learned_clip=(dict(clip='learned'), {}),
    in_forward=(dict(projection=False), {}),
    mean=({}, dict(threshold='mean')),
    nonzero=({}, dict(threshold='nonzero')),
    zero_point=({}, dict(threshold='mse', asymmetric=True)),
    learned=({}, dict(threshold='learned')),
    **{name: (dict(type=name), dict(type=name))
       for name, pair in QUANTIZERS.items()
       if name != 'ScaleClip' and pair.weight and pair.activation})
OURS = {**SITES, DISTILL: ({}, {}), **OPTIONS}
WARM_UP = 12  # steps; our thresholds settle after ten


def installed_rows() -> list:
    modules = dict(brevitas='brevitas', torch_ao='torch.ao.quantization')
    peers = [name for name in PEERS
             if importlib.util.find_spec(modules[name])]
    return ['float', *SITES, DISTILL, *peers]


def config_of(workload, row: str, bits: int) -> dict:
    weight, activation = OURS.get(row, ({}, {}))
    return dict(
        weight=dict(bits=bits, group_size=4, **weight),
        activation=dict(bits=bits, **activation),
        rules=[dict(match=workload.stem, skip=True)])


def convert(model, workload, row: str, bits: int, batch: dict) -> float:
    """Turn a float model into that of a row; returns seconds."""
    begin = time.perf_counter()
    config = config_of(workload, row, bits)
    if row in OURS:
        teacher = copy.deepcopy(model) if row == DISTILL else None
        begin = time.perf_counter()
        before = {p.data_ptr() for p in model.parameters()}
        quantize_(model, config)
        begin = time.perf_counter() - begin
        if not before <= {p.data_ptr() for p in model.parameters()}:
            raise AssertionError('the conversion copied weights')
        if teacher is not None:
            outputs, branches = find_head_outputs(teacher)
            Distillation(model, teacher, outputs, DistillConfig(),
                         branches).start()
        return begin
    if row in PEERS:
        plans = [plan for plan in make_plan(
            model, QuantConfig.from_dict(config)) if plan.weight]
        data = model.data_preprocessor(batch, False)
        traces = trace_layers(model, plans,
                              lambda: model(**data, mode='tensor'))
        begin = time.perf_counter()
        for plan in plans:
            PEERS[row](model, plan.name, traces[plan.name], bits)
        model.to(next(model.parameters()).device).train()
    return time.perf_counter() - begin


def workload_of(name: str, args):
    workload = WORKLOADS[name]
    return replace(workload, batch=args.batch or workload.batch)


def prepare(name: str, row: str, args):
    workload = workload_of(name, args)
    torch.set_num_threads(args.threads or workload.threads)
    model = workload.build().to(args.device)
    batch = workload.make_batch(model.scope)
    return model, batch, convert(model, workload, row, args.bits, batch)


def age(model) -> None:
    """Make thresholds those of a training under way: of least squared error
    they look at every step of the first hundred."""
    for quantizer in get_state(model).activation_quantizers.values():
        quantizer.end_first_looks()


def timed(step, device: str) -> float:
    begin = time.perf_counter()
    step()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def take_turns(steps: dict, rounds: int, device: str, seed: int) -> dict:
    """Seconds of every step; the rows of one round in random order."""
    order, seconds = random.Random(seed), defaultdict(list)
    for _ in range(rounds):
        names = list(steps)
        order.shuffle(names)
        for name in names:
            seconds[name].append(timed(steps[name], device))
    return dict(seconds)


def ratios(seconds: dict) -> dict:
    """Median and quartiles of the ratio to float in the same round."""
    found = {}
    for name, values in seconds.items():
        each = [a / b for a, b in zip(values, seconds['float'])]
        low, middle, high = np.quantile(each, (.25, .5, .75)).tolist()
        found[name] = dict(ratio=middle, quartiles=[low, high],
                           seconds=median(values))
    return found


def peak_memory(name: str, row: str, args) -> float:
    """Megabytes that training adds to a fresh process."""
    output = subprocess.run(
        [sys.executable, __file__, '--peak-of', name, row, '--device',
         args.device, '--bits', str(args.bits), '--threads',
         str(torch.get_num_threads()),
         *(['--batch', str(args.batch)] if args.batch else []),
         *(['--autocast', args.autocast] if args.autocast else [])],
        check=True, stdout=subprocess.PIPE, text=True)
    return float(output.stdout.split()[-1])


def print_peak(name: str, row: str, args) -> None:
    if args.device == 'cpu':
        begin = _kilobytes('VmRSS')
    model, batch, _ = prepare(name, row, args)
    step = training_step(model, batch, args.autocast)
    for _ in range(4):
        step()
    if args.device == 'cuda':
        print(torch.cuda.max_memory_allocated() / 1e6)
    else:
        print((_kilobytes('VmHWM') - begin) / 1e3)


def _kilobytes(field: str) -> int:
    """VmRSS: memory of this process, VmHWM: its peak."""
    return next(int(line.split()[1]) for line in
                Path('/proc/self/status').read_text().splitlines()
                if line.startswith(field))


def measure(name: str, args) -> dict:
    steps, evaluations, conversion = {}, {}, {}
    for row in args.rows:
        model, batch, conversion[row] = prepare(name, row, args)
        steps[row] = training_step(model, batch, args.autocast)
        for _ in range(WARM_UP if row in OURS else 3):
            steps[row]()
        if row in OURS and row != 'first_steps':
            age(model)
        evaluations[row] = model, batch
    rounds = args.rounds or WORKLOADS[name].rounds
    training = ratios(take_turns(steps, rounds, args.device, args.seed))
    for row, (model, batch) in evaluations.items():
        model.eval()
        evaluations[row] = evaluation_step(model, batch, args.autocast)
        evaluations[row]()
    evaluation = ratios(take_turns(evaluations, rounds, args.device,
                                   args.seed))
    memory = {row: peak_memory(name, row, args) for row in steps}
    workload = workload_of(name, args)
    return dict(shape=workload.shape, batch=workload.batch,
                autocast=args.autocast,
                threads=torch.get_num_threads(), rounds=rounds,
                training=training,
                evaluation=evaluation,
                peak_memory_mb=memory, conversion_seconds=conversion)


def show(name: str, found: dict, workload, args) -> None:
    height, width = workload.shape
    print(f'\n{name}, batch {workload.batch}, {height}x{width}, '
          f'W{args.bits}A{args.bits}, {args.device}, '
          f'{args.autocast or "float32"}, '
          f'{args.threads or workload.threads} threads')
    print(f'{"":12} {"step":>8} {"ratio":>7} {"quartiles":>13} '
          f'{"eval":>7} {"memory":>14} {"convert":>9}')
    for row, training in found['training'].items():
        low, high = training['quartiles']
        memory = found['peak_memory_mb']
        print(f'{row:12} {training["seconds"] * 1e3:5.0f} ms '
              f'{training["ratio"]:7.3f} {low:6.3f}-{high:.3f} '
              f'{found["evaluation"][row]["ratio"]:7.3f} '
              f'{memory[row]:5.0f} MB {memory[row] / memory["float"]:5.2f} '
              f'{found["conversion_seconds"][row]:7.2f} s')


def profile(name: str, row: str, args) -> list:
    """The ten costliest quantization operations of a training step."""
    spent = defaultdict(lambda: [0., 0])

    def watch(owner, attribute):
        real = getattr(owner, attribute)

        def watched(*values, **keywords):
            begin = time.perf_counter()
            result = real(*values, **keywords)
            if args.device == 'cuda':
                torch.cuda.synchronize()
            shape = next((tuple(value.shape) for value in values
                          if isinstance(value, torch.Tensor)), '')
            entry = spent[f'{attribute} {shape}'.strip()]
            entry[0] += time.perf_counter() - begin
            entry[1] += 1
            return result

        setattr(owner, attribute, watched)

    model, batch, _ = prepare(name, row, args)
    step = training_step(model, batch, args.autocast)
    for _ in range(WARM_UP):
        step()
    if row != 'first_steps':
        age(model)
    for attribute in ('quantize', 'quantize_even', 'quantize_relu',
                      'mask_outside', 'project_'):
        watch(kernels, attribute)
    watch(training_steps, 'update_thresholds_')
    rounds = args.rounds or WORKLOADS[name].rounds
    begin = time.perf_counter()
    for _ in range(rounds):
        step()
    total = time.perf_counter() - begin
    ranked = sorted(spent.items(), key=lambda item: -item[1][0])
    print(f'\n{name} {row}: {total / rounds * 1e3:.1f} ms per step, '
          f'{sum(entry[0] for entry in spent.values()) / total:.1%} of it in '
          'quantization')
    found = [dict(operation=operation, ms_a_step=seconds / rounds * 1e3,
                  calls_a_step=calls / rounds)
             for operation, (seconds, calls) in ranked[:10]]
    for line in found:
        print(f'  {line["ms_a_step"]:8.2f} ms  {line["calls_a_step"]:5.1f} '
              f'calls  {line["operation"]}')
    return found


def environment(device: str) -> dict:
    """Versions and the machine, to stand in every result."""
    cpu = next((line.split(':')[1].strip() for line in
                Path('/proc/cpuinfo').read_text().splitlines()
                if line.startswith('model name')), platform.processor())
    return dict(
        gdrq_mm=gdrq_mm.__version__, torch=torch.__version__,
        python=platform.python_version(), cpu=cpu, cores=os.cpu_count(),
        device=torch.cuda.get_device_name() if device == 'cuda' else cpu,
        kernels=kernels.status(device), **{
            name: importlib.import_module(name).__version__
            for name in ('brevitas', ) if importlib.util.find_spec(name)})


def write_result(path: Path, result: dict) -> None:
    """Whole or not at all."""
    partial = path.with_suffix('.part')
    partial.write_text(json.dumps(result, indent=1) + '\n')
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--models', nargs='+', choices=WORKLOADS,
                        default=list(WORKLOADS))
    parser.add_argument('--rows', nargs='+', default=installed_rows(),
                        choices=[*installed_rows(), *OPTIONS],
                        help='(default: float, both sites, and the peers that '
                        'are installed)')
    parser.add_argument('--rounds', type=int,
                        help='(default: as the model has it)')
    parser.add_argument('--bits', type=int, default=4)
    parser.add_argument('--threads', type=int,
                        help='of the CPU (default: as the model has it)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--batch', type=int,
                        help='images a step (default: as the model has it)')
    parser.add_argument('--autocast', choices=['bfloat16', 'float16'],
                        help='precision of the steps (default: float32)')
    parser.add_argument('--json', type=Path, help='where the figures go')
    parser.add_argument('--profile', action='store_true',
                        help='instead: the ten costliest operations')
    parser.add_argument('--peak-of', nargs=2, metavar=('MODEL', 'ROW'),
                        help='of one row only: megabytes at its peak')
    args = parser.parse_args()
    MMLogger.get_instance('benchmark', log_level='ERROR')
    if args.peak_of:
        print_peak(*args.peak_of, args)
        return
    if 'float' not in args.rows:
        parser.error('the rows are ratios to float; name it as well')
    if args.json and args.json.exists():
        parser.error(f'{args.json} exists; name another file or move it')
    found = {}
    for name in args.models:
        if args.profile:
            found[name] = {row: profile(name, row, args) for row in args.rows
                           if row in SITES or row in OPTIONS}
        else:
            found[name] = measure(name, args)
            show(name, found[name], workload_of(name, args), args)
    if args.json:
        write_result(args.json, dict(
            command=sys.argv, environment=environment(args.device),
            seed=args.seed, bits=args.bits, models=found))


if __name__ == '__main__':
    main()
