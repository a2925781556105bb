"""The study of proposed policies, in its short form."""
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_both_policies_are_trained_once(demo_data, tmp_path):
    command = [
        sys.executable, str(ROOT / 'tools/experiments/policies.py'),
        '--quick', '--tasks', 'cls', '--seeds', '0', '--data', str(demo_data),
        *(f'--{name}={tmp_path / name}'
          for name in ('work-dir', 'demo', 'out'))]
    first, second = (subprocess.run(command, text=True, capture_output=True)
                     for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr
    assert second.stdout.count('done already') == 2  # start and policy
    row, = [line for line in second.stdout.splitlines() if 'top-1' in line]
    found, = json.loads((tmp_path / 'out').read_text())['tasks'].values()
    ours, theirs = (found['0']['policies'][name]
                    for name in ('proposed', 'config'))
    assert ours['size'] <= theirs['size'] and ours['bits'] != theirs['bits']
    assert {bits for bits, _ in theirs['bits'].values()} == {2, 8}
    gain = 1. * (ours['trained'] - theirs['trained'])
    assert f'{gain:+.1f}' in row
    for name in ('proposed', 'config'):
        assert list((tmp_path / 'work-dir/cls-seed0' / name).glob('*.pth'))
