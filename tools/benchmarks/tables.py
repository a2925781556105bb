"""Markdown tables of docs/performance.md from the results of the benchmarks.

Usage: python tools/benchmarks/tables.py docs/results/benchmark_training.json
"""
import argparse
import json
from pathlib import Path

ROWS = dict(gdrq_input="GDRQ, site 'input'", gdrq_relu="GDRQ, site 'relu'",
            torch_ao='torch.ao', brevitas='Brevitas')


def _with_quartiles(found: dict) -> str:
    low, high = found['quartiles']
    return f'{found["ratio"]:.2f} ({low:.2f} to {high:.2f})'


def _row(*cells) -> str:
    return f'| {" | ".join(map(str, cells))} |'


def training_tables(result: dict) -> list:
    """A table a model, of benchmark_training.py."""
    lines = []
    for name, found in result['models'].items():
        training, memory = found['training'], found['peak_memory_mb']
        height, width = found['shape']
        lines += [
            f'{name}, {height}x{width}, batch {found["batch"]}, threads: '
            f'{found["threads"]}, rounds: {found["rounds"]}, a float step: '
            f'{training["float"]["seconds"] * 1e3:.0f} ms', '',
            _row('row', 'ratio to float (quartiles)', 'evaluation', 'memory',
                 'converting'), _row(*['---'] * 5)]
        lines += [
            _row(label, _with_quartiles(training[row]),
                 f'{found["evaluation"][row]["ratio"]:.2f}',
                 f'{memory[row] / memory["float"]:.2f}',
                 f'{found["conversion_seconds"][row]:.2f} s')
            for row, label in ROWS.items() if row in training] + ['']
    return lines


def growth_table(result: dict) -> list:
    """The table of benchmark_growth.py."""
    lines = [_row('setting', 'value', 'float step',
                  'ratio to float (quartiles)'), _row(*['---'] * 4)]
    for setting, found in result['settings'].items():
        lines += [
            _row(setting, value, f'{each["float_seconds"] * 1e3:.0f} ms',
                 _with_quartiles(each)) for value, each in found.items()]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('json', type=Path, help='that a benchmark wrote')
    result = json.loads(parser.parse_args().json.read_text())
    print('\n'.join(training_tables(result) if 'models' in result else
                    growth_table(result)))


if __name__ == '__main__':
    main()
