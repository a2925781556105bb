"""Markdown tables of docs/performance.md and docs/deploy.md.

Usage: python tools/benchmarks/tables.py JSON...

Of what benchmark_training.py, benchmark_growth.py, benchmark_deploy.py and
tools/export_onnx.py --eval wrote; files of the last make one table.
"""
import argparse
import json
from pathlib import Path

# Name in the results of a test -> factor that makes it points of 100.
METRICS = {'accuracy/top1': 1, 'mIoU': 1, 'pascal_voc/mAP': 100}
ROWS = dict(gdrq_input="GDRQ, site 'input'", gdrq_relu="GDRQ, site 'relu'",
            gdrq_distill="GDRQ, site 'input', distillation",
            first_steps="GDRQ, site 'input', the first 100 steps",
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
            for row, label in {**{row: row for row in training},
                               **ROWS}.items()
            if row in training and row != 'float'] + ['']
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


def deploy_table(result: dict) -> list:
    """The table of benchmark_deploy.py."""
    runtimes = result['versions']
    lines = [_row('model', 'image', 'weights', *(
        f'time, of float in {name} {number} (least to greatest)'
        for name, number in runtimes.items()), 'file, of float',
        'peak memory: ours / float'), _row(*['---'] * (5 + len(runtimes)))]
    for each in result['rows']:
        times = ['{time_ratio:.2f} ({time_ratio_least:.2f} to '
                 '{time_ratio_greatest:.2f})'.format(
                     **each['runtimes'][name]) for name in runtimes]
        lines.append(_row(
            each['model'] + (', raw' if each['raw'] else ''),
            'x'.join(map(str, each['image'])), each['weights'], *times,
            f'1/{each["float_size"] / each["size"]:.1f}',
            f'{each["peak_memory"] / 1e6:.0f} / '
            f'{each["float_peak_memory"] / 1e6:.0f} MB'))
    return [f'{result["instruction_set"]}, threads: {result["threads"]}, '
            f'rounds: {result["rounds"]}', '', *lines]


def export_table(results: list) -> list:
    """One row per file that tools/export_onnx.py --eval wrote."""
    lines = [_row('config', 'options', 'metric', 'quantized model',
                  'integer model', 'ONNX Runtime', 'predictions equal to the '
                  "quantized model's", "codes equal to the integer model's",
                  'file, of the float export'), _row(*['---'] * 9)]
    for result in results:
        arguments, metrics = result['arguments'], result['metrics']
        name, points = next(each for each in METRICS.items()
                            if each[0] in metrics['quantized'])
        values = [f'{points * metrics[each][name]:.2f}'
                  for each in ('quantized', 'integer', 'onnxruntime')]
        aligned = ', aligned' if arguments['align'] else ''
        lines.append(_row(
            Path(arguments['config']).stem, arguments['weights'] + aligned,
            name.rpartition('/')[2], *values,
            f'{metrics["onnxruntime"]["agreement"]:.2f}%',
            f'{result["codes_equal"]} of {result["codes"]}',
            f'1/{result["float_size"] / result["size"]:.1f}'))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('json', type=Path, nargs='+',
                        help='that benchmarks wrote')
    exported = []
    for path in parser.parse_args().json:
        result = json.loads(path.read_text())
        if 'arguments' in result:
            exported.append(result)
            continue
        table = (training_tables if 'models' in result else growth_table
                 if 'settings' in result else deploy_table)
        print('\n'.join(table(result)))
    if exported:
        print('\n'.join(export_table(exported)))


if __name__ == '__main__':
    main()
