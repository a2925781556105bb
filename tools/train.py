"""Run the train tool of the package that a config belongs to.

All arguments go to the train.py of mmdet, mmseg or mmpretrain;
"gdrq train CONFIG --help" lists them.

example:
  gdrq train my_w4a4.py --work-dir work_dirs/my_w4a4
"""
from gdrq_mm.cli import run_package_tool


def main() -> None:
    run_package_tool('train.py', __doc__)


if __name__ == '__main__':
    main()
