"""The whole demo of one task, interrupted and continued."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / 'tools' / 'demo.py'
PATIENCE = 600  # seconds, on a machine that is busy otherwise


def start(tmp_path):
    return subprocess.Popen(
        [sys.executable, str(DEMO), '--quick', '--tasks', 'cls',
         '--quantized', 'w2a4',
         '--work-dir', str(tmp_path / 'work'), '--data',
         str(tmp_path / 'data')],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_interrupted_demo_goes_on(tmp_path):
    work = tmp_path / 'work'
    folder = work / 'cls' / 'seed0'
    process = start(tmp_path)
    # Interrupted in the second training, after its first checkpoint.
    begin, sign = time.time(), folder / 'w2a4' / 'train' / 'last_checkpoint'
    while not sign.exists() and process.poll() is None \
            and time.time() - begin < PATIENCE:
        time.sleep(.02)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert sign.exists() and process.returncode == 143, output
    assert not (work / 'summary.json').exists()
    record = json.loads((folder / 'w2a4' / 'train.json').read_text())
    assert record['status'] == 'running'

    process = start(tmp_path)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, output
    assert 'start train: done already' in output, output
    assert 'w2a4 train: goes on (was interrupted)' in output, output
    log = (folder / 'w2a4' / 'train.log').read_text()
    assert 'resumed epoch:' in log and '--resume' in log
    record = json.loads((folder / 'w2a4' / 'train.json').read_text())
    assert record['status'] == 'done' and record['interruptions'] == 1

    summary = json.loads((work / 'summary.json').read_text())
    assert not summary['are_results'] and 'no results' in output
    assert list(summary['tasks']) == ['cls']
    runs = summary['tasks']['cls']['runs']
    assert list(runs) == ['start', 'float', 'w2a4']
    assert runs['float']['bytes'] > runs['w2a4']['bytes'] > 0
    quantized = runs['w2a4']
    assert 0 < quantized['weight_share'] <= 1
    assert 0 < quantized['mac_share'] <= 1
    assert sum(quantized['weight_share_by_bits'].values()) \
        == pytest.approx(1)
    assert (work / quantized['published']).stat().st_size \
        == quantized['bytes']
    for name in ('cls.png', 'weights_cls.png'):
        assert (work / name).read_bytes().startswith(b'\x89PNG')
    assert not [path for path in work.rglob('.*partial*')]
    assert os.listdir(tmp_path / 'data') == ['imagenet']
