"""The core tests in other versions of Python."""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools'))

import pythons  # noqa: E402


def test_every_claimed_version_is_tested():
    text = (ROOT / 'pyproject.toml').read_text()
    least, = re.findall(r'requires-python = ">=3\.(\d+)"', text)
    minors = [int(version.split('.')[1]) for version in pythons.claimed()]
    assert minors == list(range(int(least), minors[-1] + 1))


def test_the_interpreter_is_of_that_version():
    own = f'{sys.version_info[0]}.{sys.version_info[1]}'
    found = pythons.interpreter(own)
    assert subprocess.run(
        [found, '-c', 'import sys; print(sys.version)'], capture_output=True,
        text=True, check=True).stdout.startswith(own + '.')


def test_a_version_that_is_missing_is_named_and_no_success():
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools/pythons.py'), '3.999'],
        capture_output=True, text=True)
    assert done.stdout.startswith('pythons: 3.999 is not installed; skipped\n')
    assert done.returncode == 1 and 'none of 3.999' in done.stderr


def test_all_tests_that_it_runs_are_there():
    assert all((ROOT / path).exists() for path in pythons.TESTS)
