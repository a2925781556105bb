"""Published files: named by their hash, whole or absent, same outputs."""
import hashlib
import importlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint

import gdrq_mm
from gdrq_mm.checkpoint import CheckpointError, pack
from gdrq_mm.config import QuantConfig
from gdrq_mm.openmmlab import publish as publish_module
from gdrq_mm.openmmlab.publish import (
    inference_config,
    publish,
    quantization_of,
)
from gdrq_mm.openmmlab.scopes import build_model as build_of_config
from gdrq_mm.training import get_state

QUANTIZATION = dict(
    weight=dict(bits=2), activation=dict(bits=4),
    rules=[dict(match='backbone.*1', weight=dict(bits=8))])
CHECKPOINTS = dict(faster_rcnn='epoch_2.pth', resnet='epoch_2.pth',
                   pspnet='iter_4.pth')
ROOT = Path(__file__).parents[2]
PRIMITIVE = (str, int, float, bool, type(None))


_TRAINED = {}


@pytest.fixture
def trained(make_runner, tmp_path, tmp_path_factory):
    """Function name -> config file and checkpoint of a short training, made
    once a set of hooks; the config is the test's own copy."""

    def train(name, *hooks):
        key = f'{name} {hooks}'
        if key not in _TRAINED:
            folder = tmp_path_factory.mktemp(name)
            hook = dict(type='GDRQHook', quantization=QUANTIZATION)
            runner = make_runner(name, hook, *hooks, work_dir=folder)
            runner.cfg.custom_imports = dict(imports=['gdrq_mm'])
            runner.cfg.dump(str(folder / f'{name}_gdrq.py'))
            runner.train()
            _TRAINED[key] = folder
        config = shutil.copy(_TRAINED[key] / f'{name}_gdrq.py', tmp_path)
        return str(config), str(_TRAINED[key] / CHECKPOINTS[name])

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


def with_thresholds(model):
    """As after a training, in no time."""
    for layer in get_state(model).layers.values():
        for _, quantizer in layer.activation_quantizers():
            quantizer.clip.fill_(2.)
            quantizer.num_updates.fill_(20)
            quantizer.forget()
    return model


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
    assert ours.keys() - theirs.keys() == {
        f'quantization_state.{part}' for part in (
            'format', 'meta_digest', 'digest')}
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_training_goes_on_from_a_latent_file(trained, make_runner, tmp_path):
    config, checkpoint = trained('resnet')
    path, _ = publish(config, checkpoint, str(tmp_path / 'zoo'), latent=True)
    losses = []
    for number, start in enumerate((str(path), checkpoint)):
        runner = make_runner(
            'resnet', dict(type='GDRQHook', quantization=QUANTIZATION),
            work_dir=tmp_path / str(number), load_from=start)
        runner.train()
        losses.append(runner.record.losses)
    assert losses[0] == losses[1]


@pytest.mark.parametrize('latent', [True, False])
def test_the_weights_that_mms_own_tools_choose_are_published(
        latent, trained, build_model, tmp_path):
    """Those of EMA: EMAHook swaps them with the trained ones as it saves."""
    config, checkpoint = trained(
        'resnet', dict(type='EMAHook', momentum=0.5))
    path, _ = publish(config, checkpoint, str(tmp_path / 'zoo'), latent)
    ours = torch.load(path, weights_only=True)['state_dict']
    for package in ('mmdet', 'mmpretrain'):
        folder = Path(importlib.import_module(package).__file__).parent
        tool = runpy.run_path(str(
            folder / '.mim/tools/model_converters/publish_model.py'))
        out = tmp_path / package
        out.mkdir()
        extra = [] if package == 'mmdet' else [
            Namespace(no_ema=False, dataset_type=None)]
        tool['process_checkpoint'](checkpoint, str(out / 'x.pth'), *extra)
        while not list(out.glob('x*-*.pth')):  # mmdet's moves it apart
            time.sleep(0.01)
        published, = out.glob('x*-*.pth')
        theirs = torch.load(published, weights_only=True)['state_dict']
        if not latent:
            model = build_model('resnet')
            gdrq_mm.quantize_(model, QUANTIZATION)
            model.load_state_dict(theirs)
            theirs = pack(model)
        # The seal of a published file covers its metadata as well.
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs
                   if not key.endswith('.digest'))
    last = torch.load(checkpoint, weights_only=True)['ema_state_dict']
    assert not torch.equal(ours['head.fc.bias'], last['module.head.fc.bias'])


def test_averaged_weights_with_statistics_of_others_are_warned_of(
        capsys, trained, tmp_path):
    warning = 'the checkpoint holds weights averaged by EMAHook'
    config, checkpoint = trained(
        'resnet', dict(type='EMAHook', momentum=0.5))
    publish(config, checkpoint, str(tmp_path / 'zoo'))
    assert capsys.readouterr().out.count(warning) == 1
    # They fit where the run recalibrated, and in one without EMA.
    content = torch.load(checkpoint, weights_only=True)
    content['meta']['gdrq_mm']['bn_batches'] = 2
    torch.save(content, tmp_path / 'fitted.pth')
    publish(config, str(tmp_path / 'fitted.pth'), str(tmp_path / 'fitted'))
    publish(*trained('resnet'), str(tmp_path / 'plain'))
    assert warning not in capsys.readouterr().out


def test_the_test_loop_gives_the_metric_of_the_training_checkpoint(
        trained, make_runner, tmp_path):
    config, checkpoint = trained('faster_rcnn')
    paths = publish(config, checkpoint, str(tmp_path / 'zoo'))
    published = make_runner(Config.fromfile(str(paths[1])),
                            load_from=str(paths[0])).test()
    hook = dict(type='GDRQHook', quantization=QUANTIZATION)
    assert published == make_runner('faster_rcnn', hook,
                                    load_from=checkpoint).test()


def test_init_detector_opens_the_pair_and_names_the_classes(trained,
                                                            tmp_path):
    from mmdet.apis import inference_detector, init_detector
    config, checkpoint = trained('faster_rcnn')
    path, path_cfg = publish(config, checkpoint, str(tmp_path / 'zoo'))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    models = [init_detector(str(path_cfg), str(file), device='cpu')
              for file in (path, checkpoint)]
    assert models[0].dataset_meta['classes'][:2] == ('aeroplane', 'bicycle')
    found, expected = (inference_detector(model, image).pred_instances
                       for model in models)
    assert torch.equal(found.bboxes, expected.bboxes)
    assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize('bits, ends, smaller', [
    (2, 2, 12), (4, 4, 6.5), (2, 8, 11.9), (4, 8, 6.5)])
def test_a_resnet_50_shrinks_with_its_bits(bits, ends, smaller, tmp_path,
                                           monkeypatch, capsys):
    """Of full width, random weights; by the tool. ``ends``: bits of the first
    and the last layer."""
    config = tmp_path / 'resnet50.py'
    config.write_text(
        "_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'\n"
        "custom_imports = dict(imports=['gdrq_mm'])\n"
        "model = dict(type='QuantizedModel', architecture='ImageClassifier', "
        f'quantization=dict(weight=dict(bits={bits}), '
        f'activation=dict(bits=4), rules=[dict(match=name, weight=dict('
        f"bits={ends})) for name in ('backbone.conv1', 'head.fc')]))\n")
    cfg = Config.fromfile(str(config))
    model = with_thresholds(build_of_config(cfg))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'trained.pth')
    monkeypatch.setattr(sys, 'argv', [
        'publish_model.py', str(config), str(tmp_path / 'trained.pth'),
        str(tmp_path / 'zoo'), '--packed'])
    runpy.run_path(str(ROOT / 'tools/publish_model.py'), run_name='__main__')
    out = capsys.readouterr().out
    print(out)
    ratio = float(re.search(r'packed .* MB \(1/([\d.]+)\)', out)[1])
    assert ratio >= smaller
    path, = (tmp_path / 'zoo').glob('*.pth')
    float_state = {key: value for key, value in model.state_dict().items()
                   if 'quantiz' not in key}
    torch.save(float_state, tmp_path / 'float.pth')
    measured = (tmp_path / 'float.pth').stat().st_size / path.stat().st_size
    assert measured == pytest.approx(ratio, abs=0.02)


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


def publish_armed(trained, out, arm, number):
    """Publish in a process that ``arm`` may kill."""
    arm(out, number)
    publish(*trained, str(out))


def kill_at(out, number):
    """Kill this process the number-th time that Python touches a file in the
    folder."""
    left = [number]

    def count(event, args):
        if str(out) in str(args) and event.partition('.')[0] in (
                'open', 'os', 'shutil', 'tempfile'):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def kill_after(out, seconds):
    """Kill this process by the clock, in the midst of what is not Python."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def assert_whole(out, old):
    """What has a published name is whole; files of before are untouched."""
    for path in out.glob('*.pth'):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.stem.endswith(digest[:8])
        assert path.with_suffix('.py').exists()
    for path in out.glob('*.py'):
        assert Config.fromfile(path).model.type == 'QuantizedModel'
    assert all(path.read_bytes() == content for path, content in old.items())


def test_killed_at_any_moment_it_leaves_whole_files_only(
        trained, tmp_path, exit_code):
    paths = trained('resnet')
    out = tmp_path / 'zoo'
    old = {path: path.read_bytes()
           for path in publish(*paths, str(out), latent=True)}
    number = 1
    while (code := exit_code(publish_armed, paths, out, kill_at, number)):
        assert code == -signal.SIGKILL
        assert_whole(out, old)
        for path in out.glob('*.pth'):
            if path not in old:  # it had come that far
                path.unlink()
        number += 1
    assert number > 5  # it was killed at all
    assert len(list(out.glob('*.pth'))) == 2

    start = time.monotonic()
    publish(*paths, str(tmp_path / 'timed'))
    duration = time.monotonic() - start
    for share in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9):
        code = exit_code(publish_armed, paths, tmp_path / f'zoo{share}',
                         kill_after, share * duration)
        assert code in (0, -signal.SIGALRM)
        assert_whole(tmp_path / f'zoo{share}', {})


@pytest.mark.parametrize('content', ['truncated', 'code'])
def test_a_checkpoint_that_is_none_is_refused_in_one_line(
        content, trained, tmp_path):
    config, checkpoint = trained('resnet')
    bad = tmp_path / 'bad.pth'
    if content == 'code':
        torch.save(dict(state_dict=dict(a=subprocess.Popen)), bad)
    else:
        bad.write_bytes(Path(checkpoint).read_bytes()[:-1000])
    with pytest.raises(RuntimeError, match='bad.pth cannot be read') as e:
        publish(config, str(bad), str(tmp_path / 'zoo'))
    assert '\n' not in str(e.value)
    assert not (tmp_path / 'zoo').exists()


def test_a_file_of_something_else_is_no_checkpoint(trained, tmp_path):
    config, _ = trained('resnet')
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(ValueError, match='list.pth is no checkpoint'):
        publish(config, str(tmp_path / 'list.pth'), str(tmp_path / 'zoo'))
    assert not (tmp_path / 'zoo').exists()


def test_a_damaged_published_file_changes_nothing_in_a_model(trained,
                                                             tmp_path):
    config, checkpoint = trained('resnet')
    path, path_cfg = publish(config, checkpoint, str(tmp_path / 'zoo'))
    content = torch.load(path, weights_only=True)
    content['state_dict']['head.fc.weight_packed'][3, 1] ^= 4
    torch.save(content, path)
    cfg = Config.fromfile(str(path_cfg))
    init_default_scope(cfg.default_scope)
    model = build_of_config(cfg)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match='the hash inside does not fit'):
        load_checkpoint(model, str(path), map_location='cpu')
    assert all(torch.equal(value, before[key])
               for key, value in model.state_dict().items())


def test_a_float_checkpoint_is_refused(trained, build_model, tmp_path):
    config, _ = trained('resnet')
    checkpoint = tmp_path / 'float.pth'
    torch.save(dict(state_dict=build_model('resnet').state_dict()),
               checkpoint)
    with pytest.raises(ValueError, match='float.pth holds a float model'):
        publish(config, str(checkpoint), str(tmp_path / 'zoo'))
    assert not (tmp_path / 'zoo').exists()


@pytest.mark.parametrize('latent', [True, False])
def test_a_published_checkpoint_is_not_published_again(latent, trained,
                                                       tmp_path):
    path, path_cfg = publish(*trained('resnet'), str(tmp_path / 'zoo'),
                             latent=latent)
    with pytest.raises(ValueError, match=f'{path.name} is published already: '
                       'publish the training checkpoint, or copy the file'):
        publish(str(path_cfg), str(path), str(tmp_path / 'again'))
    assert not (tmp_path / 'again').exists()


@pytest.mark.parametrize('latent', [True, False])
def test_a_reshaped_checkpoint_is_refused(latent, trained, tmp_path):
    config, checkpoint = trained('resnet')
    saved = torch.load(checkpoint, weights_only=True)
    saved['state_dict']['quantization_state.phase_index'].fill_(0)
    torch.save(saved, tmp_path / 'reshaped.pth')
    with pytest.raises(ValueError, match="reshaped.pth is of the 'reshape'"):
        publish(config, str(tmp_path / 'reshaped.pth'),
                str(tmp_path / 'zoo'), latent=latent)
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
        type='QuantizedModel', architecture='Net', depth=18,
        quantization=QuantConfig.from_dict(QUANTIZATION).to_dict())
    # Versions with other defaults read it.
    assert published.model.quantization.weight.levels == 'even'
    assert published.custom_hooks == [
        dict(type='EMAHook'), dict(type='GDRQHook', begin_iter=5)]
    assert 'load_from' not in published and 'work_dir' not in published
    assert published.custom_imports == dict(
        imports=['gdrq_mm'], allow_failed_imports=False)
    # Nothing was changed in place, and it is idempotent.
    assert cfg.model.type == 'Net' and quantization_of(cfg) == QUANTIZATION
    assert inference_config(published)._cfg_dict == published._cfg_dict


def test_rules_of_a_published_config_state_the_fields_of_their_types():
    rules = [dict(match='a', weight=dict(type='ScaleClip', bits=2),
                  activation=dict(type='ScaleClip', bits=4)),
             dict(match='b', weight=dict(bits=8)), dict(match='c', skip=True)]
    cfg = Config(dict(model=dict(type='Net'), custom_hooks=[dict(
        type='GDRQHook', quantization=dict(
            weight=dict(type='LSQ', bits=4),
            activation=dict(type='LSQ', bits=4), rules=rules))]))
    published = inference_config(cfg).model.quantization
    first, *others = published.rules
    assert first.weight.levels == 'even'
    assert first.activation.threshold == 'mse'
    assert [dict(rule) for rule in others] == rules[1:]
    asked = QuantConfig.from_dict(quantization_of(cfg))
    assert all(QuantConfig.from_dict(published).schemes(name)
               == asked.schemes(name) for name in 'abcd')


def test_it_opens_where_the_code_of_the_training_is_absent(
        trained, tmp_path, monkeypatch):
    """A config with a hook of the user's own, in a module of the user's."""
    (tmp_path / 'my_hooks.py').write_text(
        'from mmengine.hooks import Hook\n'
        'from mmengine.registry import HOOKS\n'
        '@HOOKS.register_module(force=True)\n'
        'class MyHook(Hook):\n    pass\n')
    config, checkpoint = trained('resnet')
    cfg = Config.fromfile(config)
    cfg.custom_imports = dict(imports='my_hooks')  # gdrq_mm: not named
    cfg.custom_hooks.append(dict(type='MyHook'))
    cfg.dump(config)
    with monkeypatch.context() as context:
        context.syspath_prepend(str(tmp_path))
        path, path_cfg = publish(config, checkpoint, str(tmp_path / 'zoo'))
    sys.modules.pop('my_hooks')
    with pytest.warns(UserWarning, match='my_hooks failed to import'):
        published = Config.fromfile(str(path_cfg))
    assert published.custom_imports.imports == ['gdrq_mm', 'my_hooks']
    with pytest.warns(UserWarning, match='my_hooks failed to import'):
        found = infer('resnet', str(path_cfg), str(path))
    assert found[0].sum() == pytest.approx(1)


def test_configs_in_pure_python_style_are_published(tmp_path):
    """Their types are classes."""
    for name, head in (
            ('hook', 'type=ImageClassifier'),
            ('model', 'type=QuantizedModel, architecture=ImageClassifier, '
             f'quantization={QUANTIZATION}')):
        config = tmp_path / f'{name}.py'
        config.write_text(
            'from mmpretrain.models import (GlobalAveragePooling, '
            'ImageClassifier, LinearClsHead, ResNet)\n'
            'from gdrq_mm import GDRQHook, QuantizedModel\n'
            "default_scope = 'mmpretrain'\n"
            'data_preprocessor = dict(num_classes=3)\n'
            f'model = dict({head}, backbone=dict(type=ResNet, depth=18, '
            'base_channels=8, stem_channels=8), '
            'neck=dict(type=GlobalAveragePooling), head=dict('
            'type=LinearClsHead, num_classes=3, in_channels=64))\n'
            'custom_hooks = [dict(type=GDRQHook'
            + (f', quantization={QUANTIZATION}' if name == 'hook' else '')
            + ')]\n')
        model = with_thresholds(build_of_config(inference_config(
            Config.fromfile(str(config)))))
        checkpoint = tmp_path / 'trained.pth'
        torch.save(dict(state_dict=model.state_dict()), checkpoint)
        path, path_cfg = publish(str(config), str(checkpoint),
                                 str(tmp_path / 'zoo'))
        published = Config.fromfile(str(path_cfg))
        assert published.model.type.endswith('QuantizedModel')
        assert published.model.quantization == \
            QuantConfig.from_dict(QUANTIZATION).to_dict()
        assert 'quantization' not in published.custom_hooks[0]
        assert published.custom_imports.imports == ['gdrq_mm']
        load_checkpoint(build_of_config(published), str(path), strict=True)


def write_model(tmp_path, source, **backbone):
    """Config and checkpoint of a tiny model with a backbone of its own."""
    (tmp_path / 'my_net.py').write_text(source)
    config = tmp_path / 'my.py'
    config.write_text(
        "custom_imports = dict(imports=['gdrq_mm', 'my_net'])\n"
        "default_scope = 'mmpretrain'\n"
        "model = dict(type='QuantizedModel', architecture='ImageClassifier', "
        f'quantization={QUANTIZATION_OF_ALL}, backbone=dict({backbone}), '
        "neck=dict(type='GlobalAveragePooling'), head=dict("
        "type='LinearClsHead', num_classes=3, in_channels=4))\n")
    model = build_of_config(Config.fromfile(str(config)))
    checkpoint = tmp_path / 'trained.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    return str(config), str(checkpoint), model


QUANTIZATION_OF_ALL = dict(weight=dict(bits=2), activation=dict(bits=4))
HEAD = """
import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
"""
READS_WEIGHTS = HEAD + """
@MODELS.register_module(force=True)
class MyNet(BaseModule):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 1)
        self.mixed = torch.nn.Conv2d(4, 4, 1)
    def forward(self, x):
        x = self.first(x)
        return torch.nn.functional.conv2d(x, self.mixed.weight) + \
            0 * self.mixed(x),
"""
LOADS_LOOSELY = HEAD + """
@MODELS.register_module(force=True)
class MyNet(BaseModule):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 1)
        self.register_buffer('table', torch.arange(3.))
        self._register_load_state_dict_pre_hook(
            lambda state, prefix, *_: state.pop(prefix + 'table', None))
    def forward(self, x):
        return self.first(x),
"""


@pytest.fixture
def write_my_model(tmp_path, monkeypatch):
    """Function source -> config and checkpoint of a backbone MyNet."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source):
        config, checkpoint, model = write_model(tmp_path, source,
                                                type='MyNet')
        torch.save(dict(state_dict=with_thresholds(model).state_dict()),
                   checkpoint)
        return config, checkpoint

    yield write
    sys.modules.pop('my_net', None)


def test_a_layer_whose_weight_is_read_past_it_is_published(
        write_my_model, tmp_path):
    """It is quantized on read, in the training and from codes."""
    path, _ = publish(*write_my_model(READS_WEIGHTS), str(tmp_path / 'zoo'))
    assert path.exists()


def test_a_layer_whose_float_weight_is_used_is_named(write_my_model,
                                                     tmp_path):
    """Float weights in the training, those of codes after packing."""
    files = write_my_model(READS_WEIGHTS.replace(
        'self.mixed.weight)', "self.mixed._parameters['weight'])"))
    with pytest.raises(RuntimeError, match='^backbone: the published model '
                       'gives another output.*skip=True.*--latent'):
        publish(*files, str(tmp_path / 'zoo'))
    assert list((tmp_path / 'zoo').iterdir()) == []
    publish(*files, str(tmp_path / 'zoo'), latent=True)


def test_a_model_that_drops_entries_of_its_own_is_published(tmp_path,
                                                            monkeypatch):
    """As Swin V2, which does not load its own state dict strictly."""
    monkeypatch.syspath_prepend(str(tmp_path))
    config, checkpoint, model = write_model(
        tmp_path, LOADS_LOOSELY, type='MyNet')
    state_dict = with_thresholds(model).state_dict()
    with pytest.raises(RuntimeError, match='backbone.table'):
        model.load_state_dict(state_dict)
    torch.save(dict(state_dict=state_dict), checkpoint)
    path, _ = publish(config, checkpoint, str(tmp_path / 'zoo'))
    assert path.exists()
    for change, message in (
            (lambda: state_dict.pop('head.fc.bias'), 'lacks 1 entries'),
            (lambda: state_dict.update(extra=torch.ones(1)), 'lacks|has')):
        change()
        torch.save(dict(state_dict=state_dict), checkpoint)
        with pytest.raises(CheckpointError, match=message):
            publish(config, checkpoint, str(tmp_path / 'zoo'))
    sys.modules.pop('my_net')


def test_a_training_from_before_an_entry_was_added_is_published(
        tmp_path, monkeypatch):
    """And one that lacks it for another reason is not."""
    monkeypatch.syspath_prepend(str(tmp_path))
    config, checkpoint, model = write_model(
        tmp_path, LOADS_LOOSELY, type='MyNet')
    state_dict = with_thresholds(model).state_dict()
    older = {key: value for key, value in state_dict.items()
             if not key.endswith('.zero')}
    torch.save(dict(state_dict=older), checkpoint)
    path, _ = publish(config, checkpoint, str(tmp_path / 'zoo'))
    packed = torch.load(path, weights_only=True)['state_dict']
    assert not any(key.endswith('.zero') for key in packed)
    state_dict['backbone.first.input_quantizer.zero'].fill_(2.)
    torch.save(dict(state_dict=state_dict), checkpoint)
    path, _ = publish(config, checkpoint, str(tmp_path / 'zoo'))
    packed = torch.load(path, weights_only=True)['state_dict']
    assert packed['backbone.first.input_quantizer.zero'] == 2
    assert packed['head.fc.input_quantizer.zero'] == 0
    del state_dict['head.fc.input_quantizer.zero']
    torch.save(dict(state_dict=state_dict), checkpoint)
    with pytest.raises(CheckpointError, match='lacks 1 entries|missing'):
        publish(config, checkpoint, str(tmp_path / 'zoo'))
    sys.modules.pop('my_net')


BEHIND_A_RELU = HEAD + """
@MODELS.register_module(force=True)
class MyNet(BaseModule):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 1)
        self.relu = torch.nn.ReLU()
        self.second = torch.nn.Conv2d(4, 4, 1)
    def forward(self, x):
        return self.second(self.relu(self.first(x))),
"""


def test_layers_behind_a_quantized_relu_need_no_threshold(tmp_path,
                                                          monkeypatch):
    """Their inputs are on its grid; those of others need theirs."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(globals(), 'QUANTIZATION_OF_ALL', dict(
        weight=dict(bits=2), activation=dict(bits=4, site='relu')))
    config, checkpoint, model = write_model(
        tmp_path, BEHIND_A_RELU, type='MyNet')
    x = torch.rand(2, 3, 8, 8)
    gdrq_mm.calibrate(model, [lambda: model(x)])
    assert not model.backbone.second.input_quantizer.initialized
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    path, config_path = publish(config, checkpoint, str(tmp_path / 'zoo'))
    published = build_of_config(Config.fromfile(str(config_path))).eval()
    load_checkpoint(published, str(path), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(published(x), model.eval()(x))
        model.backbone.first.input_quantizer.num_updates.zero_()
        model.backbone.first.input_quantizer.clip.zero_()
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    with pytest.raises(ValueError, match='1 activation thresholds were never '
                       'set, backbone.first.input_quantizer for one'):
        publish(config, checkpoint, str(tmp_path / 'other'))
    sys.modules.pop('my_net')


@pytest.mark.parametrize('wrap', [
    lambda weights: weights,
    lambda weights: {f'module.{key}': value
                     for key, value in weights.items()}])
def test_bare_and_wrapped_weights_are_published(wrap, write_my_model,
                                                tmp_path):
    config, checkpoint = write_my_model(READS_WEIGHTS)
    weights = torch.load(checkpoint)['state_dict']
    torch.save(wrap(dict(weights)), checkpoint)
    path, _ = publish(config, checkpoint, str(tmp_path / 'zoo'))
    assert path.exists()


def test_thresholds_that_were_never_set_are_not_published(tmp_path,
                                                          monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    config, checkpoint, model = write_model(
        tmp_path, LOADS_LOOSELY, type='MyNet')
    with pytest.raises(ValueError, match='2 activation thresholds were never '
                       'set, backbone.first.input_quantizer for one'):
        publish(config, checkpoint, str(tmp_path / 'zoo'))
    for value in (torch.nan, -1.):  # nor is what no training gives
        with_thresholds(model)
        model.head.fc.input_quantizer.clip.fill_(value)
        torch.save(dict(state_dict=model.state_dict()), checkpoint)
        with pytest.raises(CheckpointError, match='head.fc.input_quantizer'):
            publish(config, checkpoint, str(tmp_path / 'zoo'))
    with_thresholds(model)
    with torch.no_grad():
        model.head.fc.bias[0] = torch.nan
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    with pytest.raises(CheckpointError, match='head.fc.bias has 1 NaN'):
        publish(config, checkpoint, str(tmp_path / 'zoo'))
    assert list((tmp_path / 'zoo').iterdir()) == []
    sys.modules.pop('my_net')


@pytest.mark.parametrize('change, message', [
    (dict(custom_hooks=[dict(type='GDRQHook', quantization='w4a4')]),
     "quantization is 'w4a4', allowed: a dict"),
    (dict(custom_hooks=dict(type='GDRQHook')),
     'custom_hooks is .* allowed: a list of dicts')])
def test_what_is_no_quantization_is_named(change, message):
    cfg = Config(dict(model=dict(type='A'), **change))
    with pytest.raises(ValueError, match=message):
        quantization_of(cfg)
