"""From a float checkpoint to a quantized one without training."""
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner, set_random_seed
from mmpretrain.models import LinearClsHead
from mmpretrain.registry import MODELS

from gdrq_mm.checkpoint import CheckpointError
from gdrq_mm.clip_search import search_clip
from gdrq_mm.openmmlab.calibrate import calibrate_checkpoint, training_forwards
from gdrq_mm.openmmlab.publish import inference_config, publish
from gdrq_mm.openmmlab.scopes import build_model
from gdrq_mm.training import calibrate, get_state, update_bn_stats

ROOT = Path(__file__).parents[2]
QUANTIZATION = dict(weight=dict(bits=4, clip='search'),
                    activation=dict(bits=4))


@pytest.fixture
def float_model(load_config, build_model, tmp_path):
    """Function name -> config file with a GDRQHook, float checkpoint."""

    def write(name):
        cfg = load_config(name)
        cfg.custom_imports = dict(imports=['gdrq_mm'])
        cfg.custom_hooks = [dict(type='GDRQHook', quantization=QUANTIZATION)]
        config, checkpoint = tmp_path / f'{name}.py', tmp_path / 'float.pth'
        cfg.dump(str(config))
        model = build_model(cfg)
        torch.save(dict(state_dict=model.state_dict(), meta=dict(
            dataset_meta=dict(classes=('a', 'b')))), checkpoint)
        return str(config), str(checkpoint)

    return write


@pytest.mark.parametrize('name', ['resnet', 'pspnet', 'faster_rcnn'])
def test_checkpoint_is_calibrated_and_opens_with_the_config(
        name, float_model, tmp_path):
    config, checkpoint = float_model(name)
    out = tmp_path / 'new' / 'quantized.pth'
    assert calibrate_checkpoint(config, checkpoint, str(out), batches=2) == 2
    saved = torch.load(out, weights_only=True)
    before = torch.load(checkpoint, weights_only=True)['state_dict']
    model = build_model(inference_config(Config.fromfile(config)))
    model.load_state_dict(saved['state_dict'])
    for key, value in before.items():
        same = torch.equal(value, saved['state_dict'][key])
        assert same == ('running' not in key), key
    for layer_name, layer in get_state(model).layers.items():
        assert int(layer.input_quantizer.num_updates) == 2, layer_name
        assert layer.input_quantizer.clip > 0, layer_name
        assert torch.equal(layer.weight_quantizer.clip.detach(),
                           search_clip(layer.weight, 4, 4)), layer_name
    assert saved['meta']['dataset_meta'] == dict(classes=('a', 'b'))
    assert [path.name for path in out.parent.iterdir()] == ['quantized.pth']
    published, _ = publish(config, str(out), str(tmp_path / 'published'))
    assert published.exists()


def test_fewer_batches_than_asked_for_are_counted_and_bn_may_stay(
        float_model, tmp_path):
    config, checkpoint = float_model('resnet')  # 8 images, 4 a batch
    out = str(tmp_path / 'out.pth')
    assert calibrate_checkpoint(config, checkpoint, out, batches=9,
                                recalibrate=False) == 2
    saved = torch.load(out, weights_only=True)['state_dict']
    before = torch.load(checkpoint, weights_only=True)['state_dict']
    assert all(torch.equal(value, saved[key])
               for key, value in before.items())


def test_the_same_checkpoint_comes_out_with_random_augmentation(
        float_model, tmp_path):
    config, checkpoint = float_model('resnet')
    cfg = Config.fromfile(config)
    cfg.train_dataloader.dataset.pipeline.insert(
        1, dict(type='RandomFlip', prob=.5))
    cfg.dump(config)
    saved = []
    for seed in (0, 0, 1):
        out = str(tmp_path / f'{len(saved)}.pth')
        calibrate_checkpoint(config, checkpoint, out, 2, cfg_options=dict(
            randomness=dict(seed=seed)))
        saved.append(torch.load(out, weights_only=True)['state_dict'])
    one, same, other = saved
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert not all(torch.equal(value, other[key])
                   for key, value in one.items())


@pytest.mark.parametrize('recalibrate', [True, False])
def test_thresholds_are_those_of_recalibrated_normalization(
        recalibrate, float_model, tmp_path):
    config, checkpoint = float_model('resnet')
    out = str(tmp_path / 'out.pth')
    calibrate_checkpoint(config, checkpoint, out, 1, recalibrate)
    cfg = Config.fromfile(config)
    model = build_model(inference_config(cfg))
    model.load_state_dict(
        torch.load(checkpoint, weights_only=True)['state_dict'])

    def forwards():
        set_random_seed(0)
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        return training_forwards(model, loader, 1)

    if recalibrate:
        update_bn_stats(model, forwards())
    calibrate(model, forwards())
    saved = torch.load(out, weights_only=True)['state_dict']
    thresholds = {key: value for key, value in model.state_dict().items()
                  if key.endswith('input_quantizer.clip')}
    assert len(thresholds) > 50
    for key, value in thresholds.items():
        assert torch.equal(saved[key], value), key


def test_what_cannot_be_calibrated_is_refused(float_model, tmp_path):
    config, checkpoint = float_model('resnet')
    out = tmp_path / 'out.pth'
    calibrate_checkpoint(config, checkpoint, str(out), 1, False)
    with pytest.raises(FileExistsError, match='out.pth exists'):
        calibrate_checkpoint(config, checkpoint, str(out), 1)
    other = str(tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='quantized already'):
        calibrate_checkpoint(config, str(out), other, 1)
    with pytest.raises(ValueError, match='batches is 0'):
        calibrate_checkpoint(config, checkpoint, other, 0)
    with pytest.raises(ValueError, match='has no train_dataloader'):
        calibrate_checkpoint(config, checkpoint, other, 1,
                             cfg_options=dict(train_dataloader=None))
    assert not Path(other).exists()


@pytest.mark.parametrize('entry, value, message', [
    ('backbone.layer2.0.conv1.weight', torch.nan, 'has 1 NaN or infinite'),
    ('backbone.bn1.running_var', torch.inf, 'has 1 NaN or infinite'),
    ('backbone.bn1.running_var', -1., 'has a value of -1')])
def test_values_that_no_training_gives_are_not_calibrated(
        entry, value, message, float_model, tmp_path):
    config, checkpoint = float_model('resnet')
    content = torch.load(checkpoint, weights_only=True)
    content['state_dict'][entry].view(-1)[0] = value
    torch.save(content, checkpoint)
    with pytest.raises(CheckpointError, match=f'^{entry} {message}'):
        calibrate_checkpoint(config, checkpoint, str(tmp_path / 'out.pth'), 1)
    assert not (tmp_path / 'out.pth').exists()


@MODELS.register_module()
class TwoOutputs(LinearClsHead):
    """As PIDNet's head: it has a loss in training mode only. Its dropout
    would show."""

    def __init__(self, two=True, **kwargs):
        super().__init__(**kwargs)
        self.two = two
        self.dropout = torch.nn.Dropout(.5)

    def forward(self, feats):
        score = super().forward([self.dropout(feats[-1])])
        return (score, score) if self.training and self.two else score

    def _get_loss(self, cls_score, *args, **kwargs):
        if self.two:
            cls_score, _ = cls_score
            assert cls_score.dim() == 2
        return super()._get_loss(cls_score, *args, **kwargs)


def test_a_model_that_has_a_loss_in_training_mode_only(
        float_model, load_config, tmp_path):
    """It gets what the same model gets whose loss does not depend on that."""
    found = []
    for two in (False, True):
        config, checkpoint = float_model('resnet')
        out = tmp_path / f'{two}.pth'
        calibrate_checkpoint(config, checkpoint, str(out), batches=2,
                             cfg_options={'model.head.type': 'TwoOutputs',
                                          'model.head.two': two})
        found.append(torch.load(out, weights_only=True)['state_dict'])
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key])


def test_modes_are_as_before_after_a_loss_in_training_mode(
        load_config, build_model, load_batch):
    cfg = load_config('resnet')
    cfg.model.head.type = 'TwoOutputs'
    model = build_model(cfg).eval()
    for forward in training_forwards(model, [load_batch('resnet')], 1):
        forward()
    assert not any(module.training for module in model.modules())


def test_the_tool_says_what_it_did_and_what_is_wrong(
        float_model, tmp_path, monkeypatch, capsys):
    config, checkpoint = float_model('resnet')
    tool, out = str(ROOT / 'tools' / 'calibrate.py'), tmp_path / 'out.pth'
    monkeypatch.setattr(sys, 'argv', [
        tool, config, checkpoint, str(out), '--batches', '1', '--no-bn',
        '--cfg-options', 'custom_hooks.0.quantization.weight.bits=3'])
    runpy.run_path(tool, run_name='__main__')
    assert 'calibrated with 1 batch:' in capsys.readouterr().out
    saved = torch.load(out, weights_only=True)['state_dict']
    assert b'3 bits' in bytes(saved['quantization_state.schemes'].tolist())
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(tool, run_name='__main__')
    assert stopped.value.code == 1
    assert 'choose another name' in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_one_sentence(float_model, tmp_path):
    config, _ = float_model('resnet')
    cfg = Config.fromfile(config)
    cfg.model.head.num_classes = 3
    cfg.dump(str(tmp_path / 'other.py'))
    with pytest.raises(RuntimeError, match='of another model: size mismatch '
                       'for head.fc.weight.* it was trained with') as error:
        calibrate_checkpoint(str(tmp_path / 'other.py'),
                             float_model('resnet')[1],
                             str(tmp_path / 'out.pth'), 1)
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'out.pth').exists()
