"""The packages' own tools, with two added lines in an inherited config."""
import importlib
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
HALF = dict(faster_rcnn='train_cfg.max_epochs=1',
            resnet='train_cfg.max_epochs=1', pspnet='train_cfg.max_iters=2')
SAVED = dict(faster_rcnn='epoch_{}.pth', resnet='epoch_{}.pth',
             pspnet='iter_{}.pth')
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


@pytest.mark.parametrize('name', ['resnet', 'pspnet', 'faster_rcnn'])
def test_train_resume_and_test_with_the_packages_own_tools(
        name, write_config, tmp_path):
    config, work_dir = write_config(name), tmp_path / 'work'
    train, test = (package_tool(name, tool)
                   for tool in ('train.py', 'test.py'))
    out = run(train, config, '--work-dir', work_dir, '--cfg-options',
              HALF[name])
    assert "GDRQHook: phase 'quantize' from iteration 0" in out
    first = 2 if name == 'pspnet' else 1
    assert (work_dir / SAVED[name].format(first)).exists()

    out = run(train, config, '--work-dir', work_dir, '--resume')
    assert 'resumed epoch: 1' in out or 'resumed epoch: 0' in out
    last = work_dir / SAVED[name].format(2 * first)
    # Plain torch reads it: no type of this project is in the file.
    saved = torch.load(last, weights_only=True)['state_dict']
    updates = [value for key, value in saved.items()
               if key.endswith('input_quantizer.num_updates')]
    assert updates and max(updates) == 4

    out = run(test, config, last, '--work-dir', tmp_path / 'test')
    assert METRICS[name] in out
    assert 'missing keys' not in out and 'unexpected key' not in out
    assert 'no activation threshold' not in out


def test_cfg_options_change_the_bits_and_other_checkpoints_are_refused(
        write_config, tmp_path):
    config, work_dir = write_config('resnet'), tmp_path / 'work'
    option = 'custom_hooks.0.quantization.weight.bits=2'
    run(package_tool('resnet', 'train.py'), config, '--work-dir', work_dir,
        '--cfg-options', option, HALF['resnet'])
    test, saved = package_tool('resnet', 'test.py'), work_dir / 'epoch_1.pth'
    out = run(test, config, saved, '--work-dir', tmp_path / 'a', '--cfg-options',
              option)
    assert METRICS['resnet'] in out
    out = run(test, config, saved, '--work-dir', tmp_path / 'b', ok=False)
    assert 'another quantization' in out
    assert 'checkpoint' in out and '2 bits' in out and '4 bits' in out


def test_this_projects_tools_pick_the_package_and_pass_arguments_on(
        write_config, tmp_path):
    config, work_dir = write_config('pspnet'), tmp_path / 'work'
    run(ROOT / 'tools/train.py', config, '--work-dir', work_dir,
        '--cfg-options', HALF['pspnet'], cwd=tmp_path)
    out = run(ROOT / 'tools/test.py', config, work_dir / 'iter_2.pth',
              '--work-dir', tmp_path / 'test', '--out', tmp_path / 'masks',
              cwd=tmp_path)
    assert METRICS['pspnet'] in out
    assert len(list((tmp_path / 'masks').glob('*.png'))) == 2


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_this_projects_tools_say_what_is_wrong(tool, tmp_path):
    front = ROOT / 'tools' / tool
    assert 'usage: ' in run(front, ok=False, cwd=tmp_path)
    out = run(front, tmp_path / 'absent.py', ok=False, cwd=tmp_path)
    assert 'absent.py' in out and 'Traceback' not in out
    config = tmp_path / 'other.py'
    config.write_text("default_scope = 'mmpose'\n")
    out = run(front, config, ok=False, cwd=tmp_path)
    assert "default_scope is 'mmpose'" in out and 'Traceback' not in out
