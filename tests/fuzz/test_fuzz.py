"""A short run of the fuzzers, with a seed of its own each day.

``make fuzz`` runs them long; docs/checkpoint_format.md has its figures.
"""
import datetime

import fuzz_files
import fuzz_kills
import fuzz_pickles
import pytest

SEED = int(datetime.date.today().strftime('%Y%m%d'))


@pytest.fixture(autouse=True)
def _print_seed():
    print(f'seed {SEED}')


@pytest.mark.filterwarnings('ignore')
def test_mutated_files_load_as_saved_or_not_at_all():
    figures = fuzz_files.run(cases=200, seed=SEED)
    assert not figures['failures'], figures['failures'][:3]
    # It is no fuzzer if all are refused, or none is.
    assert figures['outcomes']['refused'] > 20
    assert figures['outcomes']['loaded as saved'] > 2


@pytest.mark.filterwarnings('ignore')
def test_code_in_files_does_not_run():
    figures = fuzz_pickles.run(cases=40, seed=SEED)
    assert not figures['failures'], figures['failures'][:3]
    assert figures['live_under_pickle'] > 4  # it would have run


@pytest.mark.filterwarnings('ignore')
def test_kills_lose_nothing(tmp_path):
    figures = fuzz_kills.run(cases=4, seed=SEED, root=tmp_path)
    assert not figures['failures'], figures['failures'][:3]
