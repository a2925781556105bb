"""Run the model tests of a checkout of mmpretrain, mmdet or mmseg, converted.

Every model that the tests build is quantized (4 bits) as soon as it is built;
listed is what fails then and passes in float. The installed package is what
is tested, never the checkout's, so take the checkout of its version. Nothing
is fetched.

examples:
  gdrq upstream-tests ~/mmpretrain tests/test_models/test_backbones
  gdrq upstream-tests ~/mmpretrain --json upstream.json
"""
import argparse
from pathlib import Path

from jobs.records import write_json
from sweeping.upstream import compare_runs

from gdrq_mm.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkout', type=Path)
    parser.add_argument('tests', nargs='*', default=['tests/test_models'],
                        help='paths in it (default: tests/test_models)')
    parser.add_argument('--json', type=Path, metavar='FILE',
                        help='write the result, too; the page of a sweep '
                        'shows results/upstream-PACKAGE.json beside it')
    args = parser.parse_args()
    found = compare_runs(args.checkout.resolve(), args.tests)
    for name, error in sorted(found['failed'].items()):
        print(f'{name}: {error.splitlines()[0][:200]}')
    print(f'{len(found["failed"])} of {found["passed"]} tests that pass in '
          f'float fail converted ({found["package"]} {found["version"]})')
    if args.json:
        write_json(args.json, found)


if __name__ == '__main__':
    run_tool(main)
