"""Try every model family of the installed OpenMMLab packages, quantized.

One config of each family is built, converted, trained for two steps through
the package's own path, tried in prediction, saved, packed and loaded again,
and its multiply-accumulates with low-bit operands are counted. What was run
before stays (--again repeats it). --page writes the table of all results, and
the results themselves beside it as JSON.

examples:
  gdrq sweep mmdet retinanet fcos
  gdrq sweep --page docs/support.md
"""
import argparse
import time
from pathlib import Path

from sweeping.engine import Engine
from sweeping.families import PACKAGES, candidates, families
from sweeping.page import verdict_of, write_page

from gdrq_mm.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('package', nargs='?', choices=PACKAGES,
                        help='one package instead of all')
    parser.add_argument('family', nargs='*', help='of the package')
    parser.add_argument('--work-dir', type=Path,
                        default=Path('work_dirs/sweep'),
                        help='of the results (default: work_dirs/sweep)')
    parser.add_argument('--seconds', type=float, default=300.,
                        help='limit of a family (default: 300)')
    parser.add_argument('--gigabytes', type=float, default=8.,
                        help='limit of a family (default: 8)')
    parser.add_argument('--again', action='store_true',
                        help='also what was run before')
    parser.add_argument('--page', type=Path, metavar='FILE',
                        help='write the table of all results, run nothing')
    args = parser.parse_args()
    engine = Engine(args.work_dir, args.seconds, args.gigabytes)
    if args.page:
        write_page(args.page, list(engine.records()))
        return
    packages = [args.package] if args.package else PACKAGES
    todo = [(package, family) for package in packages
            for family in args.family or families(package)]
    for package, family in todo:
        candidates(package, family)
    run_all(engine, todo, args.again)


def run_all(engine: Engine, todo: list, again: bool) -> None:
    """Run what was not run, and tell how far it is."""
    left = [each for each in todo if again or engine.read(*each) is None]
    if len(left) < len(todo):
        print(f'{len(todo) - len(left)} of {len(todo)} families were run '
              'before, see --again')
    begin = time.monotonic()
    for index, (package, family) in enumerate(left):
        record = engine.run(package, family)
        spent = time.monotonic() - begin
        remaining = spent / (index + 1) * (len(left) - index - 1)
        print(f'[{index + 1}/{len(left)}] {package} {family}: '
              f'{verdict_of(record)} ({record["seconds"]:.0f} s, about '
              f'{remaining / 60:.0f} min left)', flush=True)


if __name__ == '__main__':
    run_tool(main)
