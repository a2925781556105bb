#!/usr/bin/env python3
"""Run the tests of the core in every Python that the package claims.

Usage: python3 tools/pythons.py [VERSION ...]        e.g. 3.10 3.12

The versions are the classifiers of pyproject.toml. Each gets an environment
in a temporary folder (6 GB while its tests run): torch and the mm packages as
in requirements/environment.txt, mmcv-lite in place of mmcv, which would have
to be built, and of everything else the newest release for that Python. A
version that is not installed is named and skipped. The exit code is 1 where a
test fails, or where there is none of the versions.
"""
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, Optional

from setup_env import ROOT, read_pins

PINNED = ('torch', 'torchvision', 'mmengine', 'mmpretrain')
NEWEST = ('setuptools<81', 'wheel', 'hypothesis', 'pytest', 'scipy')
TESTS = ('tests/test_functional.py', 'tests/test_clip_search.py',
         'tests/test_convert.py', 'tests/test_extend.py', 'tests/config',
         'tests/plan', 'tests/quantizers', 'tests/training',
         'tests/checkpoint', 'tests/kernels')


def claimed() -> List[str]:
    """Versions in the classifiers of pyproject.toml."""
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"',
                      (ROOT / 'pyproject.toml').read_text())


def interpreter(version: str) -> Optional[str]:
    """One on the PATH or of pyenv; None where there is none."""
    of_pyenv = sorted(Path.home().glob(
        f'.pyenv/versions/{version}.*/bin/python'))
    for python in (f'python{version}', *map(str, of_pyenv)):
        try:
            found = subprocess.run(
                [python, '-c', 'import sys; print(*sys.version_info[:2], '
                 'sep=".")'], capture_output=True, text=True)
        except FileNotFoundError:
            continue
        if found.stdout.strip() == version:
            return python
    return None


def run_tests(base: str, folder: str) -> bool:
    """Make an environment in a folder and run the tests; whether they pass."""
    python = str(Path(folder, 'bin', 'python'))
    pins = read_pins()
    lite = pins['mmcv'].replace('mmcv', 'mmcv-lite')
    for command in (
            [base, '-m', 'venv', folder],
            [python, '-m', 'pip', 'install', '-q', *NEWEST,
             *(pins[name] for name in PINNED)],
            # Its set-up script imports pkg_resources.
            [python, '-m', 'pip', 'install', '-q', '--no-build-isolation',
             lite],
            [python, '-W', 'ignore', '-m', 'pytest', '-q', '-p',
             'no:cacheprovider', *TESTS]):
        if subprocess.run(command, cwd=ROOT, env=dict(
                os.environ, PYTHONPATH=str(ROOT))).returncode:
            return False
    return True


def main() -> None:
    failed, passed = [], []
    versions = sys.argv[1:] or claimed()
    for version in versions:
        python = interpreter(version)
        if python is None:
            print(f'pythons: {version} is not installed; skipped', flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix='pythons-') as folder:
            (passed if run_tests(python, folder) else failed).append(version)
    print(f'pythons: passed: {", ".join(passed) or "none"}; '
          f'failed: {", ".join(failed) or "none"}')
    if failed:
        sys.exit(1)
    if not passed:
        sys.exit(f'pythons: none of {", ".join(versions)} is installed')


if __name__ == '__main__':
    main()
