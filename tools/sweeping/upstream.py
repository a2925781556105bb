"""Run the tests of an mm package twice, as they are and converted."""
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import Dict, List, Sequence

from jobs.checkout import ROOT

from .families import DISTRIBUTIONS, PACKAGES

# Not ``-m pytest``, which finds the checkout's own package before the
# installed one.
START = 'import sys; sys.path.remove(""); import pytest; ' \
    'sys.exit(pytest.main())'


def package_of(checkout: Path) -> str:
    """Which package a checkout is of.

    Raises:
        FileNotFoundError: It is the checkout of no package known here.
    """
    for package in PACKAGES:
        if (checkout / package).is_dir() and (checkout / 'tests').is_dir():
            return package
    raise FileNotFoundError(
        f'{checkout} is no checkout of {", ".join(PACKAGES)}: it needs the '
        'folder of the package and tests/ beside it; get one with git clone')


def run_tests(checkout: Path, tests: Sequence[str], convert: bool
              ) -> Dict[str, str]:
    """Run tests in a process of their own.

    Args:
        checkout (Path): Checkout of the package; its installed models are
            tested.
        tests (sequence[str]): Paths in it, or other arguments of pytest.
        convert (bool): Convert every model that they build.

    Returns:
        dict[str, str]: Test -> '' where it passed, 'skipped', or the error.

    Raises:
        RuntimeError: pytest could not run them.
    """
    environment = dict(
        os.environ, UPSTREAM_PACKAGE=package_of(checkout),
        UPSTREAM_CONVERT='1' if convert else '', CUDA_VISIBLE_DEVICES='',
        PYTHONPATH=os.pathsep.join(map(str, (ROOT, ROOT / 'tools'))))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report.xml'
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', START, '-q', '-o',
             'addopts=', '-p', 'no:cacheprovider', '-p',
             'sweeping.upstream_plugin', f'--junitxml={report}', *tests],
            cwd=checkout, env=environment, text=True, capture_output=True)
        if done.returncode not in (0, 1) or not report.exists():
            raise RuntimeError('pytest could not run the tests:\n'
                               + (done.stdout + done.stderr)[-2000:])
        return read_outcomes(report)


def read_outcomes(report: Path) -> Dict[str, str]:
    """Outcomes of a JUnit report, see :func:`run_tests`."""
    outcomes = {}
    for case in ElementTree.parse(report).getroot().iter('testcase'):
        name = f'{case.get("classname")}.{case.get("name")}'
        wrong = next((case.find(kind) for kind in ('failure', 'error')
                      if case.find(kind) is not None), None)
        outcomes[name] = (wrong.get('message') or 'failed') \
            if wrong is not None else \
            'skipped' if case.find('skipped') is not None else ''
    return outcomes


def tell(found: dict) -> List[str]:
    """What :func:`compare_runs` found, as lines of a page."""
    lines = [f'{found["package"]} {found["version"]}: of '
             f'{found["passed"]} tests that pass in float '
             f'{len(found["failed"])} fail converted (`gdrq upstream-tests '
             f'CHECKOUT {" ".join(found["tests"])}`)'
             + (':' if found['failed'] else '.'), '']
    kinds: Dict[str, List[str]] = {}
    for name, error in sorted(found['failed'].items()):
        # Numbers of layers do not make another kind.
        kind = re.sub(r'\d+', '...', error.splitlines()[0])
        kinds.setdefault(shorten(kind, 96, placeholder=' ...'),
                         []).append('.'.join(name.split('.')[-2:]))
    lines += [f'- {error} ({len(names)}): `{"`, `".join(names)}`'
              for error, names in kinds.items()]
    return [*lines, ''] if kinds else lines


def compare_runs(checkout: Path, tests: Sequence[str]) -> dict:
    """What fails converted and passes float.

    Returns:
        dict: ``package``, ``version`` (the installed one), ``tests`` (asked
        for), ``passed`` (number that pass in float), ``failed`` (test ->
        error).
    """
    package = package_of(checkout)
    plain = run_tests(checkout, tests, convert=False)
    converted = run_tests(checkout, tests, convert=True)
    passed = [name for name, outcome in plain.items() if not outcome]
    return dict(
        package=package, version=version(DISTRIBUTIONS[package]),
        tests=list(tests), passed=len(passed),
        failed={name: converted.get(name, 'was not run') for name in passed
                if converted.get(name, 'was not run')})
