"""Try gdrq_mm on a GPU: tests, what a step costs, a short training per task.

Usage:
    make gpu                    # or: python tools/gpu.py
    python tools/gpu.py [--out work_dirs/gpu] [--minutes 10]

It runs in the Python that calls it and installs only what is missing of
mmengine, mmcv-lite, mmpretrain and pytest; torch must be there. Detection and
segmentation join where mmdet, mmsegmentation and an mmcv with ops are. What
was found is written to gpu.json and gpu.md in the output folder, also where a
part of it failed; the exit code is 0 only if none did.
"""
import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parents[1]
# Import name -> what brings it.
NEEDED = dict(mmengine='mmengine', mmcv='mmcv-lite', mmpretrain='mmpretrain',
              pytest='pytest')
TESTS = ('tests/kernels/test_cuda.py', 'tests/integration/test_gpu.py')
NO_GPU = ('torch finds no GPU on this machine (torch.cuda.is_available() is '
          'False), so there is nothing to try.')


@dataclass(frozen=True)
class Part:
    """One process.

    Args:
        name (str): Its title.
        command (list[str]): What follows the interpreter.
        result (str, optional): JSON that it writes into the output folder.
        needs (tuple[str]): Modules that it imports.
    """
    name: str
    command: List[str]
    result: Optional[str] = None
    needs: tuple = ()


def parts(device: str, out: Path) -> List[Part]:
    """All there is to do, the most telling first."""
    # Relative to ROOT, where all runs: commands go into the results.
    benchmarks = Path('tools', 'benchmarks')
    out = out.relative_to(ROOT) if out.is_relative_to(ROOT) else out
    # On a CPU this file is tried, not the machine.
    model, batch, rounds = ('resnet50', '64', '15') if device == 'cuda' else (
        'resnet18', '2', '2')
    found = [Part('tests', ['-m', 'pytest', '-q', '-rs', '-m', 'gpu',
                            '-p', 'no:cacheprovider', *TESTS])]
    for name, more in (('float32', []), ('bfloat16 autocast',
                                         ['--autocast', 'bfloat16'])):
        result = f'step_{name.split()[0]}.json'
        found.append(Part(
            f'a training step, {model}, batch {batch}, {name}',
            [str(benchmarks / 'benchmark_training.py'), '--models', model,
             '--rows', 'float', 'gdrq_input', 'gdrq_relu', '--device', device,
             '--batch', batch, '--rounds', rounds, *more,
             '--json', str(out / result)], result))
    for name, needs in (('resnet18', ()), ('faster_rcnn', (
            'mmdet', 'mmcv._ext')), ('pspnet', ('mmseg', 'mmcv._ext'))):
        result = f'training_{name}.json'
        found.append(Part(
            f'a short training, {name}',
            [str(benchmarks / 'short_training.py'), name, '--device', device,
             '--steps', '30' if device == 'cuda' else '3',
             '--json', str(out / result)], result, needs))
    return found


def missing(needs) -> List[str]:
    def is_there(name):
        try:
            return importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:  # of the package around it
            return False
    return [name for name in needs if not is_there(name)]


def run_part(part: Part, out: Path, seconds: float) -> dict:
    """Run it and tell how it went; its log is kept."""
    absent = missing(part.needs)
    if absent:
        return dict(name=part.name, outcome='left out',
                    why=f'{" and ".join(absent)} is not installed')
    log = out / f'{part.name.replace(" ", "_").replace(",", "")}.log'
    if part.result:
        (out / part.result).unlink(missing_ok=True)
    begin = time.monotonic()
    with open(log, 'w') as file:
        try:
            code = subprocess.run(
                [sys.executable, *part.command], cwd=ROOT, stdout=file,
                stderr=subprocess.STDOUT, timeout=max(seconds, 1),
                env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(
                    None, [str(ROOT), os.environ.get('PYTHONPATH')])))
            ).returncode
            why = f'exit code {code}, see {log.name}'
        except subprocess.TimeoutExpired:
            code, why = None, f'not over when the time was, see {log.name}'
    record = dict(name=part.name, outcome='failed' if code else 'passed',
                  seconds=round(time.monotonic() - begin, 1),
                  command=['python', *part.command])
    if code is None:
        record['outcome'] = 'not over'
    if code != 0:
        return dict(record, why=why)
    if part.result:
        record['result'] = json.loads((out / part.result).read_text())
    else:
        record['summary'] = log.read_text().strip().splitlines()[-1]
    return record


def environment(device: str) -> dict:
    import torch

    import gdrq_mm
    from gdrq_mm import kernels
    return dict(
        gdrq_mm=gdrq_mm.__version__, torch=torch.__version__,
        cuda=torch.version.cuda, python=platform.python_version(),
        device=torch.cuda.get_device_name() if device == 'cuda' else 'CPU',
        gpus=torch.cuda.device_count(), kernels=kernels.status(device))


def page(found: dict) -> str:
    """The results as Markdown."""
    about = ', '.join(f'{key} {value}' for key, value in
                      found['environment'].items() if key != 'kernels')
    lines = ['# On a GPU', '', f'`make gpu`: {about}; kernels: '
             f'{found["environment"]["kernels"][1]}.', '',
             '| part | outcome | seconds |', '| --- | --- | --- |']
    for record in found['parts']:
        why = record.get('why') or record.get('summary', '')
        lines.append(f'| {record["name"]} | {record["outcome"]}'
                     f'{": " + why if why else ""} | '
                     f'{record.get("seconds", "")} |')
    for record in found['parts']:
        for model, steps in record.get('result', {}).get(
                'models', {}).items():
            memory = steps['peak_memory_mb']
            lines += ['', f'{record["name"]} ({model}, '
                      f'{"x".join(map(str, steps["shape"]))}):', '',
                      '| row | ms per step | ratio to float (quartiles) | '
                      'evaluation | peak memory, MB (ratio) |',
                      '| --- | --- | --- | --- | --- |']
            lines += [
                f'| {row} | {step["seconds"] * 1e3:.1f} | '
                f'{step["ratio"]:.3f} ({step["quartiles"][0]:.3f} to '
                f'{step["quartiles"][1]:.3f}) | '
                f'{steps["evaluation"][row]["ratio"]:.3f} | '
                f'{memory[row]:.0f} ({memory[row] / memory["float"]:.2f}) |'
                for row, step in steps['training'].items()]
    return '\n'.join(lines) + '\n'


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f'.{path.name}.partial')
    partial.write_text(text)
    os.replace(partial, path)


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/gpu')
    parser.add_argument('--minutes', type=float, default=10.)
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda',
                        help='cpu: try this command itself; its figures mean '
                        'nothing')
    args = parser.parse_args(argv)
    if missing(['torch']):
        sys.exit('torch is not installed; install the build for your CUDA '
                 'first')
    import torch
    if args.device == 'cuda' and not torch.cuda.is_available():
        sys.exit(NO_GPU)
    end = time.monotonic() + 60 * args.minutes
    absent = [NEEDED[name] for name in missing(NEEDED)]
    if absent:
        subprocess.run([sys.executable, '-m', 'pip', 'install', *absent],
                       check=True)
    sys.path.insert(0, str(ROOT))
    args.out.mkdir(parents=True, exist_ok=True)
    out = args.out.resolve()
    found = dict(environment=environment(args.device), parts=[])
    for part in parts(args.device, out):
        record = run_part(part, out, end - time.monotonic())
        print(f'{record["outcome"]}: {record["name"]}'
              f'{": " + record["why"] if "why" in record else ""}',
              flush=True)
        found['parts'].append(record)
        write(out / 'gpu.json', json.dumps(found, indent=1) + '\n')
        write(out / 'gpu.md', page(found))
    print(f'All figures: {args.out}/gpu.md')
    sys.exit(any(record['outcome'] in ('failed', 'not over')
                 for record in found['parts']))


if __name__ == '__main__':
    main()
