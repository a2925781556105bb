import copy

import pytest
import torch
from mmengine.config import Config
from mmpretrain.models import ImageClassifier

from gdrq_mm.openmmlab import QuantizedModel
from gdrq_mm.openmmlab.scopes import build_model, scope_of, type_name


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
