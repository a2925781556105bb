"""Compare quantizers on a model: one float start, one schedule, same seeds.

CONFIG fine-tunes the float model whose CHECKPOINT is given. Each scheme, at
each pair of bits, begins with it and is trained exactly so, as is the float
model itself, which the drops are measured against; and each is tested after
calibration alone. First and last layers have 8 bits, or what the rules of
CONFIG say where it quantizes; its residual and products hold for all schemes
that have none of their own.

Schemes: gdrq (the defaults), gdrq-published (2^b - 1 levels, thresholds of
means), lsq-channel, every quantizer by its name in small letters (lsq, ...),
two of those as WEIGHTS+ACTIVATIONS, or a config file with
quantization=dict(...) and, if you like, hook=dict(...), other arguments of
GDRQHook. After each name may follow +distill: the float model is its teacher.

What is done is kept: after an interruption the same command goes on, and with
more schemes, bits or seeds it runs only these.

examples:
  gdrq compare my_finetune.py my_float.pth --schemes gdrq lsq --bits 4,4 2,4
  gdrq compare my_finetune.py my_float.pth --bits 2,4 --seeds 0 1 2 \\
      --json 2_4.json --table 2_4.md --plot 2_4.png
"""
import argparse
import json
import shlex
import sys
from pathlib import Path

from gdrq_mm.cli import run_tool


def parse_args(argv=None):
    from gdrq_mm.openmmlab.scopes import ConfigOptions
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config that fine-tunes the model')
    parser.add_argument('checkpoint', help='of the float model')
    parser.add_argument('--schemes', nargs='+', default=['gdrq', 'lsq'],
                        metavar='SCHEME', help='default: gdrq lsq')
    parser.add_argument('--bits', nargs='+', default=['4,4', '2,4'],
                        metavar='W,A', help='of weights and activations '
                        '(default: 4,4 2,4)')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0],
                        metavar='SEED', help='one training of each cell per '
                        'seed (default: 0)')
    parser.add_argument('--work-dir', type=Path,
                        help='default: work_dirs/compare_<name of CONFIG>')
    parser.add_argument('--jobs', type=int, default=1, help='trainings side '
                        'by side, with one CPU thread each where there are '
                        'several (default: 1)')
    parser.add_argument('--batches', type=int, default=32,
                        help='of the calibration (default: 32)')
    parser.add_argument('--metric', help='name that the evaluator gives it '
                        '(default: save_best of CONFIG, else mAP, mIoU or '
                        'top1)')
    parser.add_argument('--rule', choices=('greater', 'less'), help='which '
                        'of the metric is better (default: what CONFIG or '
                        'mmengine says)')
    parser.add_argument('--collect', action='store_true',
                        help='run nothing, show what is done')
    for name, text in (('json', 'all figures'), ('table', 'in Markdown'),
                       ('plot', 'an image')):
        parser.add_argument(f'--{name}', type=Path, metavar='FILE',
                            help=text)
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions,
                        default={}, help='changes of CONFIG')
    args = parser.parse_args(argv)
    for name, least in (('jobs', 1), ('batches', 1)):
        if getattr(args, name) < least:
            parser.error(f'--{name} is {getattr(args, name)}; give {least} or '
                         'more')
    if min(args.seeds) < 0:
        parser.error(f'--seeds has {min(args.seeds)}; give 0 or more')
    for name in ('schemes', 'bits', 'seeds'):  # given twice, run once
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))
    if args.work_dir is None:
        args.work_dir = Path('work_dirs') / f'compare_{Path(args.config).stem}'
    return args


def main() -> None:
    args = parse_args()
    try:
        compare(args)
    except KeyboardInterrupt:
        sys.exit('\ncompare: interrupted; the same command goes on from here')


def run(jobs, comparison, lanes) -> dict:
    """Run jobs side by side; why those that failed did, by name."""
    from jobs.engine import Engine
    return Engine(jobs, lanes, comparison.settings.work_dir, preload=(
        'torch', 'mmcv', 'mmengine.runner', 'gdrq_mm',
        f'{comparison.cfg.default_scope}.models')).run()


def compare(args) -> None:
    """Run what is not done, then show all."""
    from comparing.plan import Comparison, Settings
    from comparing.schemes import parse_bits
    from comparing.table import collect, plot, start_of, table
    from jobs.checkout import cores
    from jobs.engine import check_failed
    from jobs.process import prepare_environment
    from jobs.records import Lock

    from gdrq_mm.analysis.drawing import check_image
    from gdrq_mm.writing import check_new, write_whole
    for path in filter(None, (args.json, args.table, args.plot)):
        check_new(path)
    if args.plot:
        check_image(args.plot)
    prepare_environment(1 if args.jobs > 1 else cores())
    comparison = Comparison(Settings(
        args.config, args.checkpoint, args.schemes,
        list(dict.fromkeys(map(parse_bits, args.bits))), args.seeds,
        args.work_dir.resolve(), args.batches, args.cfg_options))
    failed = {}
    if not args.collect:
        lock = Lock(comparison.settings.work_dir)  # held until the end
        first, *others = jobs = comparison.jobs()
        comparison.check_work_dir(jobs)
        # The float model that all begin as; its metrics tell a mistyped one
        # before the trainings.
        check_failed(run([first], comparison, args.jobs))
        start_of(comparison, args.metric, args.rule)
        failed = run(others, comparison, args.jobs)
        del lock
    result = collect(comparison, args.metric,
                     f'gdrq compare {shlex.join(sys.argv[1:])}', args.rule)
    print(f'\n{table(result)}')
    for path, text in ((args.json, json.dumps(result, indent=2)),
                       (args.table, table(result))):
        if path:
            with write_whole(path) as part:
                part.write_text(f'{text}\n')
    if args.plot:
        plot(result, args.plot)
    check_failed(failed)


if __name__ == '__main__':
    run_tool(main)
