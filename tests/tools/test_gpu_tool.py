"""The command that tries a machine with a GPU, on one that has none."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))

import gpu  # noqa: E402


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools/gpu.py'), '--out',
         str(tmp_path / 'out')], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == gpu.NO_GPU
    assert not (tmp_path / 'out').exists()


def part(code, **kwargs):
    return gpu.Part('a part', ['-c', code], **kwargs)


def test_what_failed_was_not_over_or_is_missing_is_told(tmp_path):
    passed = gpu.run_part(part('print("1 passed")'), tmp_path, 60)
    assert passed['outcome'] == 'passed'
    assert passed['summary'] == '1 passed'
    failed = gpu.run_part(part('raise SystemExit(3)'), tmp_path, 60)
    assert failed['outcome'] == 'failed' and 'exit code 3' in failed['why']
    late = gpu.run_part(part('import time; time.sleep(60)'), tmp_path, 1)
    assert late['outcome'] == 'not over'
    absent = gpu.run_part(part('', needs=('mmcv.no_ops', 'no_mm')), tmp_path,
                          60)
    assert absent['why'] == 'mmcv.no_ops and no_mm is not installed'


def test_a_result_of_before_is_not_taken_for_one_of_now(tmp_path):
    (tmp_path / 'r.json').write_text('{"old": 1}')
    code = f'open({str(tmp_path / "r.json")!r}, "w").write("[1]")'
    assert gpu.run_part(part(code, result='r.json'), tmp_path, 60)[
        'result'] == [1]
    failed = gpu.run_part(part('raise SystemExit(1)', result='r.json'),
                          tmp_path, 60)
    assert 'result' not in failed and not (tmp_path / 'r.json').exists()


def test_a_failed_part_stops_no_other_and_ends_in_the_exit_code(
        tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, 'parts', lambda device, out: [
        part('raise SystemExit(1)'), part('print("2 passed")')])
    with pytest.raises(SystemExit) as ended:
        gpu.main(['--device', 'cpu', '--out', str(tmp_path)])
    assert ended.value.code == 1
    found = json.loads((tmp_path / 'gpu.json').read_text())
    assert [record['outcome'] for record in found['parts']] == [
        'failed', 'passed']
    text = (tmp_path / 'gpu.md').read_text()
    assert '| a part | passed: 2 passed |' in text


def test_its_training_on_random_images_reloads_equal(tmp_path):
    out = tmp_path / 'out.json'
    command = next(
        part.command for part in gpu.parts('cpu', tmp_path)
        if part.name == 'a short training, resnet18')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', *command[:command.index('--json')],
         '--json', str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(out.read_text())['steps'] == 3
