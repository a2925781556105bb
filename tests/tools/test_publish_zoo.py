"""Publishing what the experiments have trained on real data."""
import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint

import gdrq_mm
from gdrq_mm.config import QuantConfig
from gdrq_mm.openmmlab.publish import inference_config, quantization_of
from gdrq_mm.openmmlab.scopes import build_model, example_batch

ROOT = Path(__file__).parents[2]
NAME = 'resnet18-w24_gdrq-w2a4_tiny-imagenet-100'


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import publish_zoo
    return publish_zoo


@pytest.fixture
def settings(tool, tmp_path, monkeypatch):
    """A work dir with the records of a model's cells; it is calibrated."""
    monkeypatch.chdir(tmp_path)  # publishing looks for data below
    settings = tool.Settings(tool.CELLS, tool.FAMILIES, tmp_path / 'work',
                             tmp_path / 'data')
    model = build_model(inference_config(Config.fromfile(
        ROOT / tool.MODELS[NAME].config)))
    with torch.no_grad():
        gdrq_mm.calibrate(model, [lambda: model.test_step(
            example_batch('mmpretrain', (64, 64)))])
    made = dict(policy='2 and 4', weight_levels={'2': 4}, seconds=1.,
                commit='abc', date='2026-11-26 10:00')
    for cell, metric in (('tiny/float', 43.8), (tool.MODELS[NAME].cell, 42.)):
        path = settings.record_path(cell, tool.SEED)
        path.parent.mkdir(parents=True)
        checkpoint = path.with_suffix('.pth')
        torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
        path.write_text(json.dumps(dict(
            versions=dict(torch='2'), results=dict(
                made, metric=metric, checkpoint=str(checkpoint)))))
    return settings


def test_what_is_published_is_what_the_cells_train(tool):
    assert len(tool.MODELS) == 6
    for name, model in tool.MODELS.items():
        assert (ROOT / model.config).stem == name
        cell = tool.CELLS[model.cell]
        trained = Config.fromfile(ROOT / cell.config)
        trained.merge_from_dict(cell.options)
        published = Config.fromfile(ROOT / model.config)
        quantizations = []
        for cfg in (trained, published):
            quantizations.append(QuantConfig.from_dict(quantization_of(cfg)))
            cfg.custom_hooks[0].pop('quantization')
        assert quantizations[0] == quantizations[1]
        assert trained.to_dict() == published.to_dict()
    assert tool.with_needs(tool.CELLS, [tool.MODELS[
        'faster-rcnn_r18-w24_fpn_gdrq-w2a4_bccd'].cell]) == [
            'tiny/start', 'bccd/start', 'bccd/float', 'bccd/mse-w2a4']


def test_a_model_is_published_once_with_its_figures(tool, settings, tmp_path):
    out = tmp_path / 'zoo'
    entry = tool.publish_model(tool.MODELS[NAME], settings, out)
    assert (entry['metric'], entry['float_metric']) == (42., 43.8)
    assert entry['versions'] == dict(torch='2')
    assert (out / entry['file']).stat().st_size == entry['bytes'] < 6e5
    assert (out / entry['config']).exists()
    assert json.loads((out / 'models.json').read_text()) == [entry]
    files = sorted(out.iterdir())
    assert tool.publish_model(tool.MODELS[NAME], settings, out) == entry
    assert sorted(out.iterdir()) == files


def test_another_training_is_not_put_beside_it(tool, settings, tmp_path):
    out = tmp_path / 'zoo'
    entry = tool.publish_model(tool.MODELS[NAME], settings, out)
    checkpoint = settings.record_path(
        tool.MODELS[NAME].cell, tool.SEED).with_suffix('.pth')
    content = torch.load(checkpoint, weights_only=True)
    content['state_dict']['head.fc.bias'] += 1
    torch.save(content, checkpoint)
    files = sorted(out.iterdir())
    with pytest.raises(tool.JobError, match=f'{entry["file"]}, .*not of .*h;'):
        tool.publish_model(tool.MODELS[NAME], settings, out)
    assert sorted(out.iterdir()) == files
    (out / 'models.json').unlink()  # as if it had been interrupted
    with pytest.raises(tool.JobError, match=entry['file']):
        tool.publish_model(tool.MODELS[NAME], settings, out)
    assert {*out.iterdir()} == {*files} - {out / 'models.json'}


def test_a_float_start_is_published_in_half_its_bytes(tool, tmp_path):
    start = tool.STARTS['resnet18-w24_tiny-imagenet-100']
    settings = tool.Settings(tool.CELLS, tool.FAMILIES, tmp_path / 'work',
                             tmp_path / 'data')
    model = build_model(Config.fromfile(ROOT / start.config))
    checkpoint, out = tmp_path / 'trained.pth', tmp_path / 'zoo'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(
        dataset_meta=dict(classes=('cat', 'dog')))), checkpoint)
    path = settings.record_path(start.cell, 0)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(dict(
        inputs=dict(config='abc', data=None), versions=dict(torch='1'),
        results=dict(metric=42., checkpoint=str(checkpoint)))))
    entry = tool.publish_start(start, settings, out)
    assert entry['bytes'] < .52 * checkpoint.stat().st_size
    assert json.loads((out / 'starts.json').read_text()) == {
        'tiny/start': entry}
    loaded = build_model(Config.fromfile(ROOT / start.config))
    meta = load_checkpoint(loaded, str(out / entry['file']), strict=True)
    assert meta['meta']['dataset_meta']['classes'] == ('cat', 'dog')
    for name, value in model.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == value.dtype
        exact = value.dim() < 2
        assert torch.allclose(found, value, rtol=0 if exact else 2**-11,
                              atol=0 if exact else 2**-25)
    assert tool.publish_start(start, settings, out) == entry
    torch.save(dict(state_dict=loaded.state_dict(), meta={}), checkpoint)
    with pytest.raises(tool.JobError, match=f'{entry["file"]} is not of'):
        tool.publish_start(start, settings, out)


def test_a_start_that_was_taken_over_is_trained_again(tool, tmp_path,
                                                      monkeypatch):
    """Whoever trained a model has the published start in the work dir."""
    start = tool.STARTS['resnet18-w24_tiny-imagenet-100']
    published = tool.published_starts()[start.cell]['checkpoint']
    settings = tool.Settings(tool.CELLS, tool.FAMILIES, tmp_path / 'work',
                             tmp_path / 'data')
    path = tool.start_record(start, settings)
    path.parent.mkdir(parents=True)
    trained = []

    def run_cells(settings, cells):
        trained.append(path.exists())
        return {'tiny/start': 'no data'}

    monkeypatch.setattr(tool, 'run_cells', run_cells)
    monkeypatch.setattr(tool, 'make_data', lambda *_: None)
    monkeypatch.setattr(sys, 'argv', [
        'publish_zoo.py', start.name, '--work-dir', str(tmp_path / 'work'),
        '--out', str(tmp_path / 'zoo')])
    for checkpoint in (published, str(tmp_path / 'own.pth')):
        path.write_text(json.dumps(dict(results=dict(checkpoint=checkpoint))))
        with pytest.raises(tool.JobError):
            tool.main()
    assert trained == [False, True]
    path.write_text(json.dumps(dict(results=dict(checkpoint=published))))
    (tmp_path / 'zoo').mkdir()
    (tmp_path / 'zoo' / f'{start.name}.pth').touch()
    with pytest.raises(tool.JobError, match='remove it or give another --ou'):
        tool.main()
    assert path.exists()


def test_what_cannot_be_published_leaves_nothing(tool, settings, tmp_path):
    settings.record_path(tool.MODELS[NAME].cell, tool.SEED).with_suffix(
        '.pth').write_bytes(b'no checkpoint')
    with pytest.raises(tool.JobError, match='no checkpoint|not a|cannot|read'):
        tool.publish_model(tool.MODELS[NAME], settings, tmp_path / 'zoo')
    assert not list((tmp_path / 'zoo').iterdir())


def test_missing_data_and_models_are_named(tool, tmp_path, monkeypatch,
                                           capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [
            'publish_zoo.py', *arguments, '--work-dir',
            str(tmp_path / 'work'), '--data', str(tmp_path), '--out',
            str(tmp_path / 'zoo')])
        tool.main()

    with pytest.raises(tool.JobError, match='bccd is missing: convert'):
        run('faster-rcnn_r18-w24_fpn_gdrq-w2a4_bccd')
    assert not (tmp_path / 'zoo').exists()
    (tmp_path / 'zoo').mkdir()
    (tmp_path / 'zoo' / 'resnet18-w24_tiny-imagenet-100.pth').touch()
    with pytest.raises(tool.JobError, match='is there; to train it again'):
        run('resnet18-w24_tiny-imagenet-100')
    with pytest.raises(SystemExit) as stopped:
        run('no-such-model')
    assert stopped.value.code == 2
    assert f'no model no-such-model; there are {NAME[:10]}' in \
        capsys.readouterr().err
