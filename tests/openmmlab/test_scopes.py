import copy

import torch

from gdrq_mm.openmmlab.scopes import build_model


def test_building_a_model_leaves_its_config_alone(load_config):
    cfg = load_config('resnet')  # with a data_preprocessor beside the model
    before = copy.deepcopy(cfg.to_dict())
    assert 'data_preprocessor' in before
    model = build_model(cfg)
    assert cfg.to_dict() == before
    torch.testing.assert_close(
        model.data_preprocessor.mean.flatten(),
        torch.tensor(before['data_preprocessor']['mean']))
