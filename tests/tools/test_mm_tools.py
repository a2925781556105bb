"""The packages' own tools, with two added lines in an inherited config."""
import importlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'tests' / 'integration' / 'configs'
SCOPES = dict(faster_rcnn='mmdet', pspnet='mmseg', resnet='mmpretrain')
FOLDERS = dict(faster_rcnn='VOCdevkit', pspnet='cityscapes', resnet='imagenet')
METRICS = dict(faster_rcnn='pascal_voc/mAP', resnet='accuracy/top1',
               pspnet='mIoU')


def package_tool(name, tool):
    package = importlib.import_module(SCOPES[name])
    return Path(package.__file__).parent / '.mim' / 'tools' / tool


def run(*arguments, ok=True, cwd=None):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert (done.returncode == 0) == ok, done.stdout[-4000:]
    return done.stdout


@pytest.fixture
def write_config(demo_data, tmp_path):
    """Function name -> path of a config that adds two lines to its base."""

    def write(name):
        root = f"data_root='{demo_data / FOLDERS[name]}/'"
        path = tmp_path / f'{name}_4bit.py'
        path.write_text(
            f"_base_ = '{CONFIGS / name}.py'\n"
            f'train_dataloader = dict(dataset=dict({root}))\n'
            f'test_dataloader = dict(dataset=dict({root}))\n'
            "custom_imports = dict(imports=['gdrq_mm'])\n"
            "custom_hooks = [dict(type='GDRQHook', quantization=dict("
            'weight=dict(bits=4), activation=dict(bits=4)))]\n')
        return path

    return write


def check_checkpoint(path):
    """All iterations are in it; plain torch reads it."""
    saved = torch.load(path, weights_only=True)['state_dict']
    updates = [value for key, value in saved.items()
               if key.endswith('input_quantizer.num_updates')]
    assert updates and max(updates) == 4


def check_test(out, name):
    assert METRICS[name] in out
    assert 'missing keys' not in out and 'unexpected key' not in out
    assert 'no activation threshold' not in out


def test_mmdet_trains_resumes_and_tests(write_config, tmp_path):
    config, work_dir = write_config('faster_rcnn'), tmp_path / 'work'
    train = package_tool('faster_rcnn', 'train.py')
    out = run(train, config, '--work-dir', work_dir, '--cfg-options',
              'train_cfg.max_epochs=1')
    assert "GDRQHook: phase 'quantize' from iteration 0" in out
    out = run(train, config, '--work-dir', work_dir, '--resume')
    assert 'resumed epoch: 1, iter: 2' in out
    check_checkpoint(work_dir / 'epoch_2.pth')
    out = run(package_tool('faster_rcnn', 'test.py'), config,
              work_dir / 'epoch_2.pth', '--work-dir', tmp_path / 'test')
    check_test(out, 'faster_rcnn')


def mmseg_train():
    """mmseg's own tool; with the maintained forks it finds no mmseg::
    config, which our tool does."""
    try:
        importlib.metadata.version('mmsegmentation')
    except importlib.metadata.PackageNotFoundError:
        return ROOT / 'tools/train.py'
    return package_tool('pspnet', 'train.py')


def test_mmseg_trains_resumes_and_tests(write_config, tmp_path):
    """Resumed and tested by this project's tools, which start mmseg's own;
    that alone would resume what ``load_from`` names."""
    config, work_dir = write_config('pspnet'), tmp_path / 'work'
    run(mmseg_train(), config, '--work-dir', work_dir,
        '--cfg-options', 'train_cfg.max_iters=2')
    assert (work_dir / 'iter_2.pth').exists()
    config.write_text(config.read_text() + "load_from = 'nowhere.pth'\n")
    out = run(ROOT / 'tools/train.py', config, '--work-dir', work_dir,
              '--resume', cwd=tmp_path)
    assert 'resumed epoch: 0, iter: 2' in out
    check_checkpoint(work_dir / 'iter_4.pth')
    out = run(ROOT / 'tools/test.py', config, work_dir / 'iter_4.pth',
              '--work-dir', tmp_path / 'test', '--out', tmp_path / 'masks',
              cwd=tmp_path)
    check_test(out, 'pspnet')
    assert len(list((tmp_path / 'masks').glob('*.png'))) == 2


def test_mmpretrain_trains_resumes_and_tests_with_bits_from_cfg_options(
        write_config, tmp_path):
    config, work_dir = write_config('resnet'), tmp_path / 'work'
    train, test = (package_tool('resnet', tool)
                   for tool in ('train.py', 'test.py'))
    options = ['--cfg-options', 'custom_hooks.0.quantization.weight.bits=2']
    run(train, config, '--work-dir', work_dir, *options,
        'train_cfg.max_epochs=1')
    out = run(train, config, '--work-dir', work_dir, '--resume', *options)
    assert 'resumed epoch: 1, iter: 2' in out
    saved = work_dir / 'epoch_2.pth'
    check_checkpoint(saved)
    out = run(test, config, saved, '--work-dir', tmp_path / 'a', *options)
    check_test(out, 'resnet')
    # The config says 4 bits, the checkpoint was trained with 2.
    out = run(test, config, saved, '--work-dir', tmp_path / 'b', ok=False)
    assert 'another quantization' in out
    assert '2 bits' in out and '4 bits' in out


def test_this_projects_tools_say_what_is_wrong(tmp_path):
    out = run(ROOT / 'tools/test.py', ok=False, cwd=tmp_path)
    assert 'usage: ' in out
    config = tmp_path / 'other.py'
    config.write_text("default_scope = 'mmpose'\nmodel = dict(type='Pose')\n")
    out = run(ROOT / 'tools/train.py', config, ok=False, cwd=tmp_path)
    assert "default_scope is 'mmpose'" in out and 'Traceback' not in out
