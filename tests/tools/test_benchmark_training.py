"""Benchmarks of training: what they time, and what they write."""
import json
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools' / 'benchmarks'
MODULES = ('benchmark_training', 'benchmark_growth', 'benchmark_versions',
           'tables', 'workloads', 'peers')


@pytest.fixture
def call(monkeypatch, tmp_path):
    """``call(benchmark, *arguments)``: the result it writes."""
    monkeypatch.syspath_prepend(str(TOOLS))

    def run(name, *arguments):
        module = __import__(name)
        out = tmp_path / f'{name}.json'
        monkeypatch.setattr(sys, 'argv', [
            f'{name}.py', *arguments, '--json', str(out)])
        module.main()
        return json.loads(out.read_text())

    yield run
    for name in MODULES:
        sys.modules.pop(name, None)


RESNET = ('--models', 'resnet18', '--rounds', '1', '--batch', '2',
          '--threads', '1')


def test_rows_are_compared_with_float(call, capsys):
    found = call('benchmark_training', *RESNET, '--rows', 'float',
                 'gdrq_input', 'LSQ')['models']['resnet18']
    assert set(found['training']) == {'float', 'gdrq_input', 'LSQ'}
    assert found['training']['float']['ratio'] == 1
    for row in found['training'].values():
        # One round has no spread.
        assert row['quartiles'] == [row['ratio']] * 2
    import tables
    lines = tables.training_tables(dict(models=dict(resnet18=found)))
    assert any("GDRQ, site 'input'" in line for line in lines)


def test_a_profile_names_kernels_and_thresholds(call, capsys):
    found = call('benchmark_training', *RESNET, '--profile', '--rows', 'float',
                 'gdrq_input')['models']['resnet18']
    assert set(found) == {'gdrq_input'}
    operations = [each['operation'].split(' ')[0]
                  for each in found['gdrq_input']]
    assert {'quantize', 'project_'} <= set(operations)
    assert 'update_thresholds_' in operations
    assert ' in quantization' in capsys.readouterr().out


def test_growth_is_of_thresholds_past_their_first_steps(call, monkeypatch):
    import benchmark_growth
    monkeypatch.setattr(benchmark_growth, 'BASE', dict(
        bits=4, group_size=4, images=32, depth=18))
    monkeypatch.setattr(benchmark_growth, 'SETTINGS', dict(bits=[2, 4]))
    aged = []
    monkeypatch.setattr(benchmark_growth, 'age', aged.append)
    found = call('benchmark_growth', '--rounds', '1')['settings']['bits']
    assert set(found) == {'2', '4'}
    assert all(each['ratio'] > 0 for each in found.values())
    assert len(aged) == 2


def test_versions_are_compared_round_by_round(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import benchmark_versions
    line = benchmark_versions.table([
        dict(before={'float step': .5}, now={'float step': .6})]).split(
            '\n')[-1]
    assert line == '| float step | 0.500 s | 0.600 s | 1.20 (1.20 to 1.20) |'
