"""The cheap experiments run, keep what they need, and draw from the JSON."""
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parents[2] / 'tools' / 'experiments'


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Function name, *arguments -> result and image of an experiment."""
    monkeypatch.syspath_prepend(str(TOOLS))

    def experiment(name, *arguments):
        out, image = tmp_path / f'{name}.json', tmp_path / f'{name}.png'
        tool = str(TOOLS / f'{name}.py')
        places = ['--out', str(out), '--image', str(image)]
        monkeypatch.setattr(sys, 'argv', [tool, *places, *arguments])
        runpy.run_path(tool, run_name='__main__')
        written = out.read_bytes()
        image.unlink()
        monkeypatch.setattr(sys, 'argv', [tool, *places, '--draw'])
        runpy.run_path(tool, run_name='__main__')
        assert out.read_bytes() == written and image.stat().st_size > 5000
        assert sorted(path.name for path in tmp_path.iterdir()
                      if path.name.startswith('.')) == []
        result = json.loads(written)
        assert result['environment'].keys() >= {'gdrq_mm', 'torch'}
        assert result['config']
        return result

    return experiment


def test_fig5_follows_the_theory_of_uniform_data(run):
    rows = run('fig5_distributions', '--seeds', '0', '--sizes', '1000',
               '20000')['rows']
    for row in rows:
        if row['distribution'] == 'uniform' and row['samples'] == 20000:
            assert row['quantized_loss']['mean'] == pytest.approx(
                1 / row['levels'], rel=.02)
    losses = {row['distribution']: row['quantized_loss']['mean']
              for row in rows if row['levels'] == 15}
    assert losses['uniform'] < losses['gaussian'] < losses['laplace']


def test_thresholds_of_least_squared_error_lose_least(run):
    rows = run('thresholds', '--seeds', '0', '--bits', '4')['rows']
    errors = {(row['function'], row['threshold']):
              row['relative_squared_error']['mean'] for row in rows}
    for name in ('silu', 'gelu', 'hardswish'):
        assert errors[name, 'mse, zero point'] < errors[name, 'mse'] / 2
        assert errors[name, 'mse'] < errors[name, 'nonzero'] / 2
    assert errors['relu', 'mse'] == errors['relu', 'mse, zero point']


def test_fig6_groups_lose_no_more_than_the_layer(run, tmp_path):
    checkpoint = tmp_path / 'model.pth'
    weight = torch.randn(16, 3, 3, 3, generator=torch.manual_seed(0))
    torch.save(dict(state_dict={'backbone.conv1.weight': weight}), checkpoint)
    rows = run('fig6_group_clips', str(checkpoint), '--groups', '8')['rows']
    for row in rows:
        assert len(row['groups']['clip']) == 8
        assert row['groups']['quantized_loss'] < \
            row['layer']['quantized_loss']


def test_fig7_reshaping_with_k_of_2_is_the_nearest_to_uniform(run):
    rows = {row['k']: row['layers']['conv2'] for row in run(
        'fig7_fig8_reshaping', '--seeds', '0', '--epochs', '1')['rows']}
    distances = {k: row['ks_to_uniform']['mean'] for k, row in rows.items()}
    losses = {k: row['quantized_loss']['4']['mean'] for k, row in rows.items()}
    assert distances['2'] == min(distances.values())
    assert losses['2'] == min(losses.values())
    assert rows.keys() == {'2', '2.5', '3', '4', 'inf'}
