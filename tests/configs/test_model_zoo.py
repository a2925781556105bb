"""Metafiles, model index and tables of the zoo."""
import json
import shutil
import sys
from pathlib import Path

import modelindex
import numpy as np
import pytest
import yaml
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from small import ROOT

from gdrq_mm.openmmlab.scopes import build_model
from gdrq_mm.plan import QuantReport
from gdrq_mm.training import get_state

RESULTS = json.loads((ROOT / 'docs/results/demo.json').read_text())
ZOO = ROOT / 'model_zoo'
PUBLISHED = json.loads((ZOO / 'models.json').read_text())
STARTS = json.loads((ZOO / 'starts.json').read_text())


@pytest.fixture(scope='module')
def index():
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    return index


@pytest.fixture
def model_zoo(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import model_zoo
    return model_zoo


def test_the_model_index_is_valid(index, capsys):
    index.check(silent=False)
    assert not index.check_errors, capsys.readouterr().out
    families = {path.parent.name
                for path in (ROOT / 'configs').glob('*/metafile.yml')}
    assert families == {path.name for path in (ROOT / 'configs').iterdir()
                        if path.name != '_base_'}
    assert len(index.collections.data) == len(families)


def on_real_data(model):
    return 'stand-in' not in model.results[0].dataset


def test_every_model_of_the_demo_is_listed_with_its_figures(index):
    listed = {model.config: model for model in index.models
              if not on_real_data(model)}
    measured = {task['configs'][run]: (run, values)
                for task in RESULTS['tasks'].values()
                for run, values in task['runs'].items()}
    assert listed.keys() == measured.keys()
    for config, (run, values) in measured.items():
        model = listed[config]
        assert (ROOT / config).exists() and model.name == Path(config).stem
        assert model.weights is None
        metrics = dict(model.results[0].metrics)
        drop = metrics.pop('drop', None)
        assert list(metrics.values()) == [
            pytest.approx(values['metric']['mean'], abs=0.051)]
        assert drop == (pytest.approx(values['drop']['mean'], abs=0.051)
                        if run.startswith('w') else None)


def test_models_of_real_data_are_listed_with_the_means_of_their_seeds(index):
    listed = {Path(model.config).stem: model for model in index.models
              if on_real_data(model)}
    assert len(listed) == 3 * 5 + 6  # ResNet-50 has one bit pair more
    for data_set, float_model, quantized, count in (
            ('tiny', 'resnet18-w24_finetune_tiny-imagenet-100',
             'resnet18-w24_gdrq-w2a2_tiny-imagenet-100', 3),
            ('tiny50', 'resnet50-w24_finetune_tiny-imagenet-100',
             'resnet50-w24_gdrq-w2a2_tiny-imagenet-100', 1),
            ('bccd', 'faster-rcnn_r18-w24_fpn_finetune_bccd',
             'faster-rcnn_r18-w24_fpn_gdrq-w2a2_bccd', 3),
            ('camvid', 'pspnet_r18-w24-d8_finetune_camvid',
             'pspnet_r18-w24-d8_gdrq-w2a2_camvid', 3)):
        cells = json.loads((ROOT / f'docs/results/real_{data_set}.json')
                           .read_text())['cells']
        theirs, ours = ({seed: each['metric'] for seed, each in
                         cells[f'{data_set}/{name}']['seeds'].items()}
                        for name in ('float', 'mse-w2a2'))
        for name, values in ((float_model, theirs), (quantized, ours)):
            model = listed[name]
            assert model.metadata.data['Seeds'] == len(values) == count
            metrics = dict(model.results[0].metrics)
            drop = metrics.pop('drop', None)
            assert list(metrics.values()) == [
                pytest.approx(np.mean(list(values.values())), abs=.051)]
        assert drop == pytest.approx(
            np.mean([theirs[seed] - ours[seed] for seed in ours]), abs=.051)


def test_every_published_model_is_listed_with_its_figures(index):
    beside = {model['Name']: model for model in yaml.safe_load(
        (ZOO / 'metafile.yml').read_text())['Models']}
    sizes = {model.config: model.metadata.data.get('File Size (kB)')
             for model in index.models if on_real_data(model)}
    assert len(beside) == len(PUBLISHED) > 0
    for each in PUBLISHED:
        files = beside[each['name']]
        assert files['Config'] == f'model_zoo/{each["config"]}'
        assert files['Weights'] == f'model_zoo/{each["file"]}'
        assert sizes[each['training_config']] == round(each['bytes'] / 1000)
        metrics = dict(files['Results'][0]['Metrics'])
        assert metrics.pop('drop') == pytest.approx(
            each['float_metric'] - each['metric'], abs=.051)
        assert list(metrics.values()) == [
            pytest.approx(each['metric'], abs=.051)]


def test_the_zoo_holds_what_its_list_says_and_is_small():
    named = {each[key] for each in PUBLISHED for key in ('file', 'config')}
    named |= {each['file'] for each in STARTS.values()}
    assert {path.name for path in ZOO.iterdir()} == {
        'models.json', 'starts.json', 'metafile.yml', 'README.md', *named}
    assert sum(path.stat().st_size for path in ZOO.iterdir()) < 30e6
    readme = (ZOO / 'README.md').read_text()
    for each in PUBLISHED:
        assert (ZOO / each['file']).stat().st_size == each['bytes']
        assert each['file'] in readme and each['config'] in readme


@pytest.mark.parametrize('cell', STARTS)
def test_float_starts_are_those_of_the_experiments(cell, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    from experiments.cells import Configs
    from experiments.starts import published_starts, take_over
    from experiments.studies import CELLS
    entry = published_starts()[cell]
    assert (ZOO / entry['file']).stat().st_size == entry['bytes']
    result, _ = take_over(CELLS[cell], 0, entry, dict(
        config=Configs(ZOO).hash(CELLS[cell], 0), data=entry['stamp']))
    assert result['metric'] > 30
    model = build_model(Config.fromfile(ROOT / entry['training_config']))
    load_checkpoint(model, result['checkpoint'], strict=True)


@pytest.mark.parametrize('entry', PUBLISHED, ids=lambda each: each['name'])
def test_inferencers_open_published_models(entry):
    files = [str(ZOO / entry[key]) for key in ('config', 'file')]
    image = np.random.default_rng(0).integers(
        0, 256, (60, 80, 3), dtype=np.uint8)
    if entry['data'] == 'bccd':
        from mmdet.apis import DetInferencer
        inferencer = DetInferencer(*files, device='cpu', show_progress=False)
        found = inferencer(image, pred_score_thr=0.)['predictions'][0]
        assert len(found['bboxes']) == len(found['scores']) == len(
            found['labels'])
        classes = inferencer.visualizer.dataset_meta['classes']
        assert set(found['labels']) <= set(range(len(classes)))
        assert set(classes) == {'RBC', 'WBC', 'Platelets'}
    elif entry['data'] == 'camvid':
        from mmseg.apis import MMSegInferencer
        inferencer = MMSegInferencer(*files, device='cpu')
        found = inferencer(image)['predictions']
        assert found.shape == (60, 80) and found.max() < 11
        assert 'pedestrian' in inferencer.model.dataset_meta['classes']
    else:
        from mmpretrain import ImageClassificationInferencer
        inferencer = ImageClassificationInferencer(*files, device='cpu')
        found, = inferencer(image)
        assert found['pred_class'] in inferencer.classes
        assert len(inferencer.classes) == 100
    plans = get_state(inferencer.model).plans
    assert QuantReport(plans).policy() == entry['policy']


def test_metafiles_and_tables_are_up_to_date(model_zoo, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['model_zoo.py', '--check'])
    model_zoo.main()
    assert 'nothing to do' in capsys.readouterr().out


def test_what_was_not_trained_says_config_only():
    for folder in ('faster_rcnn', 'pspnet', 'resnet', 'retinanet', 'vgg'):
        table = (ROOT / 'configs' / folder / 'README.md').read_text()
        rows = [line for line in table.splitlines()
                if line.startswith('| [')]
        configs = {path.stem for path in
                   (ROOT / 'configs' / folder).glob('*.py')}
        models = yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml')
                                .read_text())['Models']
        trained = {model['Name'] for model in models}
        for row in rows:
            name = row[3:row.index(']')]
            assert name in configs
            assert ('config only' in row) == (name not in trained), row
        assert trained <= {row[3:row.index(']')] for row in rows}


def test_an_outdated_table_is_found(model_zoo, monkeypatch, tmp_path):
    """In a copy with one more config and another result."""
    for name in ('configs', 'docs', 'model_zoo'):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / 'model-index.yml', tmp_path)
    monkeypatch.setattr(model_zoo, 'ROOT', tmp_path)
    new = tmp_path / 'configs/vgg/vgg16bn_gdrq-w3a3_in1k.py'
    new.write_text('# Ours, [3,3].\n'
                   "_base_ = './vgg16bn_gdrq-w2a2_in1k.py'\n")
    monkeypatch.setattr(sys, 'argv', ['model_zoo.py', '--check'])
    before = (tmp_path / 'configs/vgg/README.md').read_text()
    with pytest.raises(SystemExit, match='outdated: configs/vgg/README.md'):
        model_zoo.main()
    assert (tmp_path / 'configs/vgg/README.md').read_text() == before
    monkeypatch.setattr(sys, 'argv', ['model_zoo.py'])
    model_zoo.main()
    assert 'vgg16bn_gdrq-w3a3' in (
        tmp_path / 'configs/vgg/README.md').read_text()
