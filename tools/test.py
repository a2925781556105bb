"""Run the test tool of the package that a config belongs to.

All arguments go to the test.py of mmdet, mmseg or mmpretrain;
"gdrq test CONFIG --help" lists them.

example:
  gdrq test my_w4a4.py work_dirs/my_w4a4/epoch_2.pth
"""
from gdrq_mm.cli import run_package_tool


def main() -> None:
    run_package_tool('test.py', __doc__)


if __name__ == '__main__':
    main()
