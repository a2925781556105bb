#!/usr/bin/env python3
"""Train, test and publish low-bit models on small stand-in data.

For every task: a float model, then from it GDRQ with [weight, activation]
bits [4,4] and [2,4], and more float training to compare with; each is tested
with the package's own test tool, the quantized ones are published, opened in
the package's inferencer and drawn.
What is done is kept: after an interruption the same command goes on.

Writes below --work-dir: summary.json, <task>.png (predictions),
weights_<task>.png (distribution of weights), and per run the logs, the
checkpoints and the published files.
"""
import argparse
import sys
from pathlib import Path

from demo_stages.tasks import DEFAULT_RUNS, QUANTIZED, TASKS
from jobs.checkout import ROOT
from jobs.records import JobError, read_json


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tasks', nargs='+', choices=list(TASKS),
                        default=list(TASKS),
                        help='detection, segmentation, classification '
                        '(default: all)')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0],
                        metavar='SEED', help='one training of each model a '
                        'seed; the first one is published (default: 0)')
    parser.add_argument('--quantized', nargs='+', choices=QUANTIZED,
                        default=list(DEFAULT_RUNS), help='models to train '
                        'from the float one (default: w4a4 w2a4)')
    parser.add_argument('--work-dir', type=Path,
                        help='default: work_dirs/demo, with --quick '
                        'work_dirs/demo_quick')
    parser.add_argument('--data', type=Path,
                        help='where the datasets are, or are made; default: '
                        'data/demo, with --quick data/demo_tiny')
    parser.add_argument('--quick', action='store_true',
                        help='a few iterations on a handful of images: does '
                        'it run at all? The figures are no results')
    parser.add_argument('--table', type=Path, metavar='SUMMARY',
                        help='print the table of a summary.json, do nothing '
                        'else')
    args = parser.parse_args()
    for name, suffix in (('work_dir', 'work_dirs/demo{}'),
                         ('data', 'data/demo{}')):
        if getattr(args, name) is None:
            short = dict(work_dir='_quick', data='_tiny')[name]
            setattr(args, name, ROOT / suffix.format(
                short if args.quick else ''))
    for name in ('tasks', 'seeds', 'quantized'):  # given twice, run once
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))
    if min(args.seeds) < 0:
        parser.error(f'--seeds must be 0 or more, got {min(args.seeds)}')
    return args


def print_table(path):
    from demo_stages.summary import table
    summary = read_json(path)
    if summary is None or 'tasks' not in summary:
        raise JobError(f'{path} is no summary of a demo; give the '
                        'summary.json that demo.py wrote to its --work-dir')
    print(table(summary))


def main():
    args = parse_args()
    try:
        if args.table:
            print_table(args.table)
        else:
            from demo_stages.engine import run_demo
            from demo_stages.run_configs import Settings
            run_demo(Settings(args.tasks, args.seeds, args.work_dir.resolve(),
                              args.data.resolve(), args.quick,
                              args.quantized))
    except JobError as error:
        sys.exit(f'\ndemo: {error}')
    except KeyboardInterrupt:
        sys.exit('\ndemo: interrupted; the same command goes on from here')


if __name__ == '__main__':
    main()
