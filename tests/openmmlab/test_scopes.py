import argparse
import copy

import pytest
import torch
from mmengine.config import Config
from mmpretrain.models import ImageClassifier

from gdrq_mm.openmmlab import QuantizedModel
from gdrq_mm.openmmlab.scopes import (
    ConfigOptions,
    build_model,
    example_batch,
    image_channels,
    read_config,
    scope_of,
    type_name,
)


def test_building_a_model_leaves_its_config_alone(load_config):
    cfg = load_config('resnet')  # with a data_preprocessor beside the model
    before = copy.deepcopy(cfg.to_dict())
    assert 'data_preprocessor' in before
    model = build_model(cfg)
    assert cfg.to_dict() == before
    torch.testing.assert_close(
        model.data_preprocessor.mean.flatten(),
        torch.tensor(before['data_preprocessor']['mean']))


@pytest.mark.parametrize('architecture', [False, True])
@pytest.mark.parametrize('as_text', [False, True])
def test_a_config_in_pure_python_is_of_the_package_of_its_model(
        architecture, as_text):
    kind = f'{ImageClassifier.__module__}.ImageClassifier' if as_text \
        else ImageClassifier
    model = dict(type=QuantizedModel, architecture=kind) if architecture \
        else dict(type=kind)
    assert scope_of(Config(dict(default_scope=None, model=model))) \
        == 'mmpretrain'


@pytest.mark.parametrize('model', [
    dict(type='ImageClassifier'), dict(type=Config), {}])
def test_a_config_of_no_package_is_refused(model):
    with pytest.raises(ValueError, match=(
            'default_scope is None .*write it into the config')):
        scope_of(Config(dict(default_scope=None, model=model)))


def test_a_type_is_text_or_a_class():
    assert {type_name(dict(type=each)) for each in (
        ImageClassifier, 'ImageClassifier', 'mmpretrain.ImageClassifier')
            } == {'ImageClassifier'}


@pytest.mark.parametrize('text, message', [
    ('model = dict(type=', r"is no config that can be read: '\(' was never "
     r'closed \(line 1\)'),
    ('model = dict(type=Nobody)', "can be read: name 'Nobody' is not defined"),
    ('x = 1 / 0', r'can be read: division by zero \(ZeroDivisionError\)'),
    ('a = 1', 'has no model: give the config of a training')])
def test_a_config_that_is_none_is_one_sentence(text, message, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(text)
    with pytest.raises(ValueError, match=f'config.py {message}'
                       if text == 'a = 1' else message):
        read_config(path)


def test_changes_of_a_config_are_made(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text('model = dict(type="A", depth=1)')
    assert read_config(path, {'model.depth': 2}).model.depth == 2


@pytest.mark.parametrize('name', ['hooks.5.type', 'model.type.name'])
def test_a_change_of_what_is_not_there_is_one_sentence(name, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text('model = dict(type="A")\nhooks = [dict(type="B")]')
    with pytest.raises(ValueError, match='takes no such --cfg-options: '):
        read_config(path, {name: 2})


def test_an_option_that_is_no_change_is_wrong_usage(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions)
    found = parser.parse_args([
        '--cfg-options', 'a.b=2', 'c=[1,2]', 'd=epoch_{}.pth'])
    assert found.cfg_options == {
        'a.b': 2, 'c': [1, 2], 'd': 'epoch_{}.pth'}
    for option, said in (
            ('foo', "--cfg-options: 'foo' is no NAME=VALUE"),
            ('a=[1,2', '--cfg-options: Imbalanced brackets'),
            ('a=dict(b=1,c=2)', "'a=dict(b=1,c=2)' has a dict: name its "),
            ("a=[{'b':1,'c':2}]", 'has a dict: name its fields')):
        with pytest.raises(SystemExit) as exit:
            parser.parse_args(['--cfg-options', 'a.b=2', option])
        assert exit.value.code == 2
        assert said in capsys.readouterr().err


def test_names_of_a_package_that_is_not_installed_have_a_remedy(monkeypatch):
    def missing(path):
        raise FileNotFoundError('gdrq_mm/.mim/model-index.yml')

    monkeypatch.setattr(Config, 'fromfile', missing)
    with pytest.raises(FileNotFoundError, match=(
            'gdrq_mm::a/b.py is not found .*model-index.yml.*pip install .')):
        read_config('gdrq_mm::a/b.py')


@pytest.mark.parametrize('change, message', [
    (dict(type='ResNett'), 'ResNett is not in the'),
    (dict(deph=18), "unexpected keyword argument 'deph'")])
def test_a_model_that_cannot_be_built_is_one_sentence(change, message,
                                                      load_config):
    cfg = load_config('resnet')
    cfg.model.backbone.update(change)
    with pytest.raises(ValueError, match=f'builds no model: .*{message}'):
        build_model(cfg)


@pytest.mark.parametrize('cfg, channels', [
    (dict(data_preprocessor=dict(mean=[1.])), 1),
    (dict(data_preprocessor=dict(mean=[1.]),
          model=dict(backbone=dict(in_channels=3))), 3),
    (dict(data_preprocessor=dict(mean=[1.] * 3),
          model=dict(data_preprocessor=dict(mean=[1.]), backbone=[])), 1),
    (dict(model=dict(data_preprocessor=dict(mean=[1.] * 4))), 4),
    (dict(model=dict(backbone=dict(in_channels=2))), 2),
    (dict(data_preprocessor=dict(bgr_to_rgb=True), model={}), 3)])
def test_images_have_the_channels_that_the_model_takes(cfg, channels):
    assert image_channels(Config(cfg)) == channels
    image = example_batch('mmpretrain', (4, 5), channels)['inputs']
    assert image.shape == (1, channels, 4, 5)
