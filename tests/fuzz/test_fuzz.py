"""A short run of the fuzzers, with a seed of its own each day.

``make fuzz`` runs them long; docs/checkpoint_format.md has its figures.
"""
import datetime
import json
import subprocess
import sys
from pathlib import Path

import fuzz_files
import fuzz_kills
import fuzz_large_files
import fuzz_pickles
import pytest

SEED = int(datetime.date.today().strftime('%Y%m%d'))


@pytest.fixture(autouse=True)
def _print_seed():
    print(f'seed {SEED}')


@pytest.mark.filterwarnings('ignore')
def test_mutated_files_load_as_saved_or_not_at_all():
    figures = fuzz_files.run(range(200), SEED)
    assert not figures['failures'], figures['failures'][:3]
    # It is no fuzzer if all are refused, or none is.
    assert figures['outcomes']['refused'] > 20
    assert figures['outcomes']['loaded as saved'] > 2


@pytest.mark.parametrize('begin, end, seed', [
    (0, 8, SEED), (14, 15, 0)])  # a NaN among the weights
def test_large_damaged_files_take_no_more_memory_than_two_honest_ones(
        begin, end, seed):
    # In a process of its own: in one that ran other tests the honest files
    # may lie in memory that these left, and count for nothing.
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c',
         'import json, fuzz_large_files; print(json.dumps('
         f'fuzz_large_files.run(range({begin}, {end}), {seed})))'],
        cwd=Path(fuzz_large_files.__file__).parent, capture_output=True,
        text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures['cases'] == end - begin
    assert not figures['failures'], figures['failures'][:3]


@pytest.mark.filterwarnings('ignore')
def test_code_in_files_does_not_run():
    figures = fuzz_pickles.run(range(40), SEED)
    assert not figures['failures'], figures['failures'][:3]
    assert figures['live_under_pickle'] > 4  # it would have run


def test_kills_lose_nothing(tmp_path):
    # It forks, which torch refuses once a backward pass ran in a process, as
    # in that of other tests.
    out = tmp_path / 'figures.json'
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', fuzz_kills.__file__, '--cases', '4',
         '--seed', str(SEED), '--json', str(out)],
        capture_output=True, text=True)
    assert out.exists(), done.stderr[-2000:]
    figures = json.loads(out.read_text())
    assert not figures['failures'], figures['failures'][:3]
    assert done.returncode == 0, done.stderr[-2000:]
