"""Published files: named by their hash, whole or absent, same outputs."""
import hashlib
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config

from gdrq_mm import publish as publish_module
from gdrq_mm.publish import inference_config, publish, quantization_of

QUANTIZATION = dict(
    weight=dict(bits=2), activation=dict(bits=4),
    rules=[dict(match='backbone.*1', weight=dict(bits=8))])
CHECKPOINTS = dict(faster_rcnn='epoch_2.pth', resnet='epoch_2.pth',
                   pspnet='iter_4.pth')
PRIMITIVE = (str, int, float, bool, type(None))


@pytest.fixture
def trained(make_runner, tmp_path):
    """Function name -> config file and checkpoint of a short training."""

    def train(name, *hooks, quantization=QUANTIZATION):
        hook = dict(type='GDRQHook', quantization=quantization)
        runner = make_runner(name, hook, *hooks, work_dir=tmp_path / name)
        runner.cfg.custom_imports = dict(imports=['gdrq_mm'])
        config = tmp_path / f'{name}_gdrq.py'
        runner.cfg.dump(str(config))
        runner.train()
        return str(config), str(tmp_path / name / CHECKPOINTS[name])

    return train


def infer(name, config, checkpoint):
    """What the package's own inferencer says of one image."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    if name == 'faster_rcnn':
        from mmdet.apis import DetInferencer
        inferencer = DetInferencer(config, checkpoint, device='cpu')
        found = inferencer(image, return_datasamples=True)['predictions'][0]
        found = found.pred_instances
        return [found.bboxes, found.scores, found.labels]
    if name == 'pspnet':
        from mmseg.apis import MMSegInferencer
        inferencer = MMSegInferencer(config, checkpoint, device='cpu')
        found = inferencer(image, return_datasamples=True)
        return [found.seg_logits.data]
    from mmpretrain import ImageClassificationInferencer
    inferencer = ImageClassificationInferencer(config, checkpoint,
                                               device='cpu')
    return [torch.from_numpy(inferencer(image)[0]['pred_scores'])]


def assert_primitive(value, where=''):
    if isinstance(value, dict):
        for key, item in value.items():
            assert isinstance(key, PRIMITIVE), where
            assert_primitive(item, f'{where}.{key}')
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            assert_primitive(item, f'{where}.{index}')
    else:
        assert type(value) in (*PRIMITIVE, torch.Tensor), (where, type(value))


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_a_published_file_opens_in_the_inferencer_with_the_same_outputs(
        name, trained, tmp_path):
    config, checkpoint = trained(name)
    path, path_cfg = publish(config, checkpoint, str(tmp_path / 'zoo'))
    assert re.fullmatch(rf'{name}_gdrq_\d{{8}}-[0-9a-f]{{8}}.pth', path.name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stem.endswith(digest[:8])
    assert sorted(each.name for each in path.parent.iterdir()) == sorted(
        [path.name, path_cfg.name])

    loaded = torch.load(path, weights_only=True)
    assert_primitive(loaded)
    assert 'optimizer' not in loaded and 'message_hub' not in loaded
    assert any(key.endswith('.weight_packed') for key in loaded['state_dict'])
    cfg = Config.fromfile(str(path_cfg))
    assert cfg.model.type == 'QuantizedModel'

    published = infer(name, str(path_cfg), str(path))
    expected = infer(name, str(path_cfg), checkpoint)
    for one, other in zip(published, expected):
        assert torch.equal(one, other)
    # The config is inside as well: the file alone says what it is.
    assert 'QuantizedModel' in loaded['meta']['cfg']


def test_a_latent_file_keeps_the_float_weights(trained, tmp_path):
    config, checkpoint = trained('resnet')
    path, _ = publish(config, checkpoint, str(tmp_path / 'zoo'), latent=True)
    ours = torch.load(path, weights_only=True)['state_dict']
    theirs = torch.load(checkpoint, weights_only=True)['state_dict']
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_ema_weights_are_published(trained, tmp_path):
    config, checkpoint = trained(
        'resnet', dict(type='EMAHook', momentum=0.5))
    path, _ = publish(config, checkpoint, str(tmp_path / 'zoo'), latent=True)
    ours = torch.load(path, weights_only=True)['state_dict']
    trained_last = torch.load(checkpoint, weights_only=True)['ema_state_dict']
    key = 'backbone.conv1.weight'  # EMAHook swaps the two when it saves
    assert not torch.equal(ours[key], trained_last[f'module.{key}'])


def test_an_existing_file_is_not_overwritten(trained, tmp_path):
    config, checkpoint = trained('resnet')
    path, _ = publish(config, checkpoint, str(tmp_path / 'zoo'))
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=f'{path.stem}.* exists'):
        publish(config, checkpoint, str(tmp_path / 'zoo'))
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 2


def test_an_interrupted_publication_leaves_nothing(trained, tmp_path,
                                                   monkeypatch):
    config, checkpoint = trained('resnet')

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(publish_module, '_check_published', interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(config, checkpoint, str(tmp_path / 'zoo'))
    assert list((tmp_path / 'zoo').iterdir()) == []


def test_a_float_checkpoint_is_refused(trained, build_model, tmp_path):
    config, _ = trained('resnet')
    checkpoint = tmp_path / 'float.pth'
    torch.save(dict(state_dict=build_model('resnet').state_dict()),
               checkpoint)
    with pytest.raises(ValueError, match='float.pth holds a float model'):
        publish(config, str(checkpoint), str(tmp_path / 'zoo'))
    assert not (tmp_path / 'zoo').exists()


def test_a_checkpoint_of_other_bits_is_refused(trained, tmp_path):
    config, checkpoint = trained('resnet')
    cfg = Config.fromfile(config)
    cfg.custom_hooks[0].quantization.weight.bits = 3
    cfg.dump(config)
    with pytest.raises(RuntimeError, match='another quantization'):
        publish(config, checkpoint, str(tmp_path / 'zoo'))
    assert not (tmp_path / 'zoo').exists()


def test_a_float_config_is_refused(tmp_path):
    (tmp_path / 'float.py').write_text("model = dict(type='ResNet')")
    cfg = Config.fromfile(str(tmp_path / 'float.py'))
    with pytest.raises(ValueError, match='float.py quantizes nothing'):
        quantization_of(cfg)


def test_the_published_config_trains_with_the_hooks_own_phases():
    cfg = Config(dict(
        model=dict(type='Net', depth=18), load_from='x.pth', work_dir='y',
        custom_hooks=[dict(type='EMAHook'), dict(
            type='GDRQHook', begin_iter=5, quantization=QUANTIZATION)]))
    published = inference_config(cfg)
    assert published.model == dict(
        type='QuantizedModel', architecture='Net', quantization=QUANTIZATION,
        depth=18)
    assert published.custom_hooks == [
        dict(type='EMAHook'), dict(type='GDRQHook', begin_iter=5)]
    assert 'load_from' not in published and 'work_dir' not in published
    # Nothing was changed in place, and it is idempotent.
    assert cfg.model.type == 'Net' and quantization_of(cfg) == QUANTIZATION
    assert inference_config(published)._cfg_dict == published._cfg_dict
