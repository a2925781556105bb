#!/usr/bin/env python3
"""Train what the claims of the paper are tested with; keep every result.

Usage: python tools/run_experiments.py STUDY... [--seeds 0 1 2] [--jobs 2]
       python tools/run_experiments.py --list

A study is a table; its cells are small models that OpenMMLab's runner trains.
Cells that have a result with the same config, data and start are not run
again: after an interruption the same command goes on. At the end, and with
--collect alone, all results are added to docs/results/<study>.json;
tools/results_page.py makes docs/results.md from those.
"""
import argparse
import sys
from pathlib import Path

from experiments.engine import Settings, run_cells
from experiments.results import collect, list_studies
from experiments.studies import CELLS, FAMILIES, STUDIES
from jobs.checkout import ROOT, cores, shown
from jobs.engine import check_failed
from jobs.process import prepare_environment
from jobs.records import JobError, Lock


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('studies', nargs='*', metavar='STUDY',
                        help=f'{", ".join(STUDIES)}, or all')
    parser.add_argument('--seeds', nargs='+', type=int, metavar='SEED',
                        help='default: as many as each study wants')
    parser.add_argument('--jobs', type=int, default=cores(),
                        help='one-thread processes (default: cores)')
    parser.add_argument('--work-dir', type=Path,
                        default=ROOT / 'work_dirs' / 'experiments')
    parser.add_argument('--data', type=Path, default=ROOT / 'data',
                        help='where the datasets are, or (in demo/) are made; '
                        'default: data')
    parser.add_argument('--demos', type=Path, nargs='*',
                        default=[ROOT / 'work_dirs' / 'demo'],
                        help='work dirs of tools/demo.py: models of Tables 5 '
                        'and 6 that it has trained are taken over')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'results',
                        help='default: docs/results')
    parser.add_argument('--list', action='store_true',
                        help='what there is, and what is done')
    parser.add_argument('--collect', action='store_true',
                        help='train nothing')
    args = parser.parse_args()
    unknown = set(args.studies) - {*STUDIES, 'all'}
    if unknown:
        parser.error(f'no study {", ".join(sorted(unknown))}; there are '
                     f'{", ".join(STUDIES)}')
    if not args.studies and not args.list:
        parser.error('name one or more studies, or all, or --list')
    if args.jobs < 1:
        parser.error(f'--jobs must be 1 or more, got {args.jobs}')
    if 'all' in args.studies or not args.studies:
        args.studies = list(STUDIES)
    return args


def make_data(cells, data):
    """Make the demo datasets that are missing; check the others."""
    sys.path.insert(0, str(ROOT / 'tools' / 'dataset_converters'))
    from make_demo_data import FOLDERS, DemoDataError, make
    wanted = {FAMILIES[CELLS[name].family].data for name in cells}
    for task, folder in FOLDERS.items():
        if f'demo/{folder}' in wanted:
            try:
                make(task, data / 'demo')
            except DemoDataError as error:
                raise JobError(str(error)) from None
            wanted.remove(f'demo/{folder}')
    for folder in sorted(wanted):
        if not (data / folder / 'conversion.json').exists():
            raise JobError(f'{shown(data / folder)} is missing: convert the '
                            'public data set with the converter of its name '
                            'in tools/dataset_converters')


def tasks_of(args):
    """Cells and seeds, in order: the first seed of all studies first."""
    tasks = []
    seeds = args.seeds or sorted({
        seed for study in args.studies for seed in STUDIES[study].all_seeds()})
    for seed in seeds:
        for study in args.studies:
            if args.seeds or seed in STUDIES[study].all_seeds():
                tasks += STUDIES[study].tasks(CELLS, [seed])
    return list(dict.fromkeys(tasks))


def main():
    args = parse_args()
    settings = Settings(CELLS, FAMILIES, args.work_dir.resolve(),
                        args.data.resolve(),
                        [path.resolve() for path in args.demos], args.jobs)
    if args.list:
        print(list_studies(settings, {name: STUDIES[name]
                                      for name in args.studies}))
        return
    failed = {}
    if not args.collect:
        prepare_environment()
        lock = Lock(settings.work_dir)  # held until the end
        tasks = tasks_of(args)
        make_data([name for name, _ in tasks
                   if name not in settings.starts], settings.data)
        failed = run_cells(settings, tasks)
        del lock
    for study in args.studies:
        path = collect(settings, study, STUDIES[study], args.out)
        print(f'{study}: {shown(path) if path else "nothing to write yet"}')
    check_failed(failed)


if __name__ == '__main__':
    try:
        main()
    except JobError as error:
        sys.exit(f'run_experiments: {error}')
    except KeyboardInterrupt:
        sys.exit('\nrun_experiments: interrupted; the same command goes on')
