#!/usr/bin/env python3
"""Write the tables and verdicts of docs/results.md from docs/results/*.json.

Usage:
    python tools/results_page.py [--check]

Between ``<!-- study NAME -->`` and ``<!-- end -->`` the page is generated, the
rest is written by hand. ``--check`` writes nothing and fails where the page
is not up to date.
"""
import argparse
import re
import sys
from pathlib import Path

from experiments.studies import STUDIES
from experiments.tables import Results
from jobs.records import read_json, write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'results.md'
SECTION = re.compile(r'(<!-- study (\w+) -->\n).*?(<!-- end -->)', re.S)


def section(name: str) -> str:
    """The generated part of a study."""
    study = STUDIES[name]
    measured = read_json(ROOT / 'docs' / 'results' / f'{name}.json')
    lines = [f'### {study.title}', '',
             f'`python tools/run_experiments.py {name}`']
    if measured is None:
        return '\n'.join([*lines, '', 'Not run yet.', ''])
    lines[-1] += f' ([result](results/{name}.json))'
    results = Results(study, measured)
    lines += ['', results.table()]
    if study.claims:
        lines += ['', results.claims()]
    return '\n'.join([*lines, ''])


def page(text: str) -> str:
    """The page with all generated parts as they should be."""
    return SECTION.sub(lambda match: f'{match[1]}{section(match[2])}'
                       f'{match[3]}', text)


def draw_fig8(path: Path) -> None:
    """Fig. 8 (b): one line a k."""
    measured = read_json(ROOT / 'docs' / 'results' / 'fig8.json')
    if measured is None:
        return
    from experiments.records import new_axes

    from gdrq_mm.analysis.drawing import save_figure
    study = STUDIES['fig8']
    results = Results(study, measured)
    figure, axes = new_axes(1, 1, 5, 3.4)
    for row in study.rows:
        found = [(int(column.split()[0]), results.metrics(name).values())
                 for column, name in zip(study.columns, row.cells)]
        found = [(bits, sum(values) / len(values))
                 for bits, values in found if values]
        if found:
            axes[0, 0].plot(*zip(*found), '.-', label=row.label)
    axes[0, 0].set_xlabel('bits of weights')
    axes[0, 0].set_ylabel('top-1 after fine-tuning')
    axes[0, 0].legend(fontsize='small')
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--check', action='store_true',
                        help='write nothing, fail where the page is outdated')
    check = parser.parse_args().check
    text = PAGE.read_text()
    if check:
        if page(text) != text:
            sys.exit(f'results_page: {PAGE.name} is outdated; run python '
                     'tools/results_page.py')
        return
    write_text(PAGE, page(text))
    draw_fig8(ROOT / 'docs' / 'images' / 'fig8_accuracy.png')


if __name__ == '__main__':
    main()
