"""Tests of an mm package, run float and converted."""
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

TESTS = '''
import pytest
import torch
from mmpretrain.models import LeNet5
from mmpretrain.registry import MODELS


@pytest.fixture(params=['class', 'registry'])
def model(request):
    return LeNet5(num_classes=4) if request.param == 'class' else \\
        MODELS.build(dict(type='LeNet5', num_classes=4))


def test_forward(model):
    assert model(torch.rand(2, 1, 32, 32))[0].shape == (2, 4)


def test_layers_are_float(model):
    assert type(model.features[0]) is torch.nn.Conv2d


def test_is_broken():
    assert False
'''


def test_what_fails_converted_only_is_listed(tmp_path):
    (tmp_path / 'mmpretrain').mkdir()
    (tmp_path / 'mmpretrain/__init__.py').write_text(
        'raise ImportError("the package of the checkout")')
    (tmp_path / 'tests').mkdir()
    (tmp_path / 'tests/__init__.py').touch()
    (tmp_path / 'tests/test_lenet.py').write_text(TESTS)
    command = [sys.executable, str(ROOT / 'tools/upstream_tests.py')]
    done = subprocess.run(
        [*command, tmp_path, 'tests/test_lenet.py', '--json',
         tmp_path / 'new' / 'found.json'], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert '2 of 4 tests that pass in float fail converted' in done.stdout
    found = json.loads((tmp_path / 'new' / 'found.json').read_text())
    assert found['package'] == 'mmpretrain' and found['passed'] == 4
    assert sorted(found['failed']) == [
        f'tests.test_lenet.test_layers_are_float[{kind}]'
        for kind in ('class', 'registry')]
    assert all('QuantConv2d' in error for error in found['failed'].values())
    other = tmp_path / 'other'
    other.mkdir()
    wrong = subprocess.run([*command, other], text=True, capture_output=True)
    assert wrong.returncode == 1 and 'is no checkout of' in wrong.stderr
