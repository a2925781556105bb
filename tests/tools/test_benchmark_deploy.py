"""benchmark_deploy.py: what it writes of a small model, and its table."""
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools' / 'benchmarks'
CONFIG = ROOT / 'tests' / 'integration' / 'configs' / 'resnet.py'


def load(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f'{name}.py')
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def benchmark():
    pytest.importorskip('openvino', reason='pip install openvino')
    yield load('benchmark_deploy')
    del sys.modules['benchmark_deploy']


def test_a_small_model_gets_a_row_of_each_runtime(benchmark, tmp_path,
                                                  monkeypatch, capsys):
    out = tmp_path / 'figures.json'
    monkeypatch.setattr(benchmark, 'get_config',
                        lambda name: Config.fromfile(name))
    monkeypatch.setattr(benchmark, 'MODELS', dict(tiny=benchmark.Entry(
        str(CONFIG), (32, 40), ('backbone.conv1', 'head.fc'))))
    monkeypatch.setattr(sys, 'argv', [
        'benchmark_deploy.py', '--rounds', '1', '--activations', '3',
        '--ends', '7', '--json', str(out)])
    asked = []
    quantize = benchmark.gdrq_mm.quantize_
    monkeypatch.setattr(benchmark.gdrq_mm, 'quantize_', lambda model, config: (
        asked.append(config), quantize(model, config)))
    benchmark.main()
    config, = asked
    assert config['weight'] == dict(bits=4)
    assert config['activation'] == dict(bits=3)
    assert [rule['weight']['bits'] for rule in config['rules']] == [7, 7]
    result = json.loads(out.read_text())
    assert capsys.readouterr().out.startswith(
        f'{benchmark.instruction_set()}, threads: 1, rounds: 1\n'
        'tiny 32x40, int8: ')
    row, = result['rows']
    assert (row['weight_bits'], row['activation_bits'],
            row['end_weight_bits']) == (4, 3, 7)
    assert row['integer_kernels'] == row['quantized_layers'] > 20
    assert row['size'] < row['float_size']
    assert min(row['peak_memory'], row['float_peak_memory']) > 2**20
    assert row['runtimes'].keys() == result['versions'].keys() == {
        'onnxruntime', 'openvino'}
    for found in row['runtimes'].values():
        assert found['time_ratio'] == pytest.approx(
            found['ms'] / found['float_ms'])
    integer, layers = row['openvino_integer_layers']
    assert 0 < integer <= layers
    head, _, header, rule, line = load('tables').deploy_table(result)
    assert head == f'{result["instruction_set"]}, threads: 1, rounds: 1'
    assert line.startswith('| tiny | 32x40 | int8 | ')
    assert header.count('|') == rule.count('|') == line.count('|')


@pytest.mark.parametrize('flags, name', [
    (['avx2', 'avx_vnni'], 'avx_vnni'),
    (['avx2', 'avx512_f', 'avx512_vnni'], 'avx512_vnni'),
    (['avx', 'avx2'], 'avx2')])
def test_vnni_is_told_apart_from_avx2(benchmark, flags, name, monkeypatch):
    monkeypatch.setattr(torch.cpu, 'get_capabilities',
                        lambda: dict.fromkeys(flags, True))
    assert benchmark.instruction_set() == name


def test_the_models_are_configs_of_the_packages_at_full_width(benchmark):
    names = set()
    for entry in benchmark.MODELS.values():
        cfg = benchmark.get_config(entry.config)
        names.add((cfg.default_scope, cfg.model.backbone.type,
                   cfg.model.backbone.get('depth')))
        assert cfg.model.backbone.get('base_channels', 64) == 64
    assert names == {
        ('mmpretrain', 'ResNet', 18), ('mmpretrain', 'MobileNetV2', None),
        ('mmdet', 'ResNet', 18), ('mmseg', 'ResNetV1c', 18)}
