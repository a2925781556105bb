"""Try every model family of the installed OpenMMLab packages, quantized.

One config of each family is built, converted, trained for two steps through
the package's own path, tried in prediction, saved, packed and loaded again,
and its multiply-accumulates with low-bit operands are counted. What was run
before stays (--again repeats it). --export makes ONNX files instead. --page
writes the table of all results, and the results themselves beside it as JSON;
families that were not run anew stay as they are there.

examples:
  gdrq sweep mmdet retinanet fcos
  gdrq sweep --page docs/support.md
  gdrq sweep --export mmdet retinanet
"""
import argparse
from pathlib import Path

from jobs.process import Limits
from sweeping.engine import read, read_all, run_families
from sweeping.exporting import verdict_of_export, write_export_page
from sweeping.families import PACKAGES, candidates, families, installed
from sweeping.page import verdict_of, write_page

from gdrq_mm.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('package', nargs='?', choices=PACKAGES,
                        help='one package instead of all')
    parser.add_argument('family', nargs='*', help='of the package')
    parser.add_argument('--export', action='store_true',
                        help='export each family to ONNX and run the file')
    parser.add_argument('--work-dir', type=Path,
                        help='of the results (default: work_dirs/sweep, of '
                        'exports work_dirs/sweep_export)')
    parser.add_argument('--seconds', type=float, default=300.,
                        help='limit of a family, CPU time (default: 300)')
    parser.add_argument('--gigabytes', type=float, default=8.,
                        help='limit of a family (default: 8)')
    parser.add_argument('--again', action='store_true',
                        help='also what was run before')
    parser.add_argument('--page', type=Path, metavar='FILE',
                        help='write the table of all results, run nothing')
    args = parser.parse_args()
    work_dir = args.work_dir or Path(
        'work_dirs/sweep_export' if args.export else 'work_dirs/sweep')
    write, function, tell = (
        write_export_page, 'sweeping.exporting:probe_export',
        verdict_of_export) if args.export else (
        write_page, 'sweeping.probe:probe', verdict_of)
    if args.page:
        if args.page.suffix == '.json':
            raise ValueError(f'--page is {args.page}: the results go into a '
                             '.json beside the page; give it a name in .md')
        found = list(read_all(work_dir, function))
        if not found:
            raise ValueError(f'nothing was run in {work_dir}, so there is no '
                             'page to write; name the --work-dir of a sweep')
        write(args.page, found)
        return
    packages = [args.package] if args.package else installed()
    todo = [(package, family) for package in packages
            for family in args.family or families(package)]
    for package, family in todo:
        candidates(package, family)
    left = [each for each in todo
            if args.again or read(work_dir, *each, function) is None]
    if len(left) < len(todo):
        print(f'{len(todo) - len(left)} of {len(todo)} families were run '
              'before, see --again')
    run_families(work_dir, left, Limits(args.seconds, args.gigabytes),
                 function, tell)


if __name__ == '__main__':
    run_tool(main)
