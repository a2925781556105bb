"""tools/analyze.py plan: a dry run that lists every layer."""
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from gdrq_mm.analysis.diff import Difference, Energy

ROOT = Path(__file__).resolve().parents[2]
IMAGE = next((ROOT / 'docs' / 'images').glob('*.png'))
CONFIGS = dict(
    det='faster_rcnn/faster-rcnn_r18-small_fpn_gdrq-w2a4_demo-voc.py',
    seg='pspnet/pspnet_r18-small_gdrq-w2a4_demo-cityscapes.py',
    cls='resnet/resnet18-small_gdrq-w2a4_demo-imagenet.py')
EXPECTED = dict(
    det=[r'neck.fpn_convs.0.conv +Conv2d +2 +3 +4 +4 +8 +1 +signed +1 ',
         r'rpn_head.rpn_conv +Conv2d +2 +3 +4 +4 +8 +1 +signed +4 ',
         r'rpn_head.rpn_cls .* unsigned +4 +rpn_head.rpn_reg ',
         '35 of 35 layers'],
    seg=[r'backbone.stem.0 +Conv2d +8 +255 +8 .* signed ', '29 of 29 layers'],
    cls=[r'head.fc +Linear +8 +255 +8 .*10240 -> 2580 +rule .head.fc.',
         '22 of 22 layers'])


def analyze(*args):
    return subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'analyze.py'), *args],
        capture_output=True, text=True)


@pytest.mark.parametrize('task', CONFIGS)
def test_the_plan_names_bits_groups_signs_and_shared_inputs(task):
    import re
    result = analyze('plan', str(ROOT / 'configs' / CONFIGS[task]),
                     '--shape', '64', '64')
    assert result.returncode == 0, result.stderr
    for pattern in EXPECTED[task]:
        assert re.search(pattern, result.stdout), (pattern, result.stdout)


def test_a_typo_in_a_rule_is_an_error_with_the_nearest_name():
    result = analyze(
        'plan', str(ROOT / 'configs' / CONFIGS['cls']), '--cfg-options',
        'custom_hooks.0.quantization.rules.0.match=backbone.conv9')
    assert result.returncode == 1
    assert "'backbone.conv9' matches no layer; did you mean" in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.mark.parametrize('policy, change', [
    (['--bits', '6'], dict(weight=dict(bits=6), activation=dict(bits=6))),
    (['--float'], dict(skip=True))])
def test_ends_prints_rules_to_paste(policy, change, monkeypatch, capsys):
    tool = str(ROOT / 'tools' / 'analyze.py')
    monkeypatch.setattr(sys, 'argv', [
        tool, 'ends', str(ROOT / 'configs' / CONFIGS['cls']), '--shape',
        '32', '32', *policy])
    runpy.run_path(tool, run_name='__main__')
    pasted = eval('dict(' + capsys.readouterr().out + ')')
    assert pasted['rules'] == [dict(match='backbone.conv1', **change),
                               dict(match='head.fc', **change)]


@pytest.mark.parametrize('bits', ['1', '9'])
def test_ends_prints_no_rule_that_a_config_refuses(bits, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run_tool(monkeypatch, 'ends', ROOT / 'configs' / CONFIGS['cls'],
                 '--bits', bits)
    assert exit.value.code == 2
    assert f'--bits: invalid choice: {bits}' in capsys.readouterr().err


# Of the last layer.
FLOAT_WEIGHT = 'custom_hooks.0.quantization.rules.1.weight.bits=None'


def run_tool(monkeypatch, *args):
    tool = str(ROOT / 'tools' / 'analyze.py')
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
    runpy.run_path(tool, run_name='__main__')


def test_coverage_is_the_share_that_the_plan_prints(monkeypatch, capsys,
                                                    tmp_path):
    arguments = [ROOT / 'configs' / CONFIGS['cls'], '--shape', '32', '32',
                 '--cfg-options', FLOAT_WEIGHT]
    picture = tmp_path / 'coverage.png'
    run_tool(monkeypatch, 'coverage', *arguments, '--picture', picture)
    *_, summary = capsys.readouterr().out.strip().split('\n')
    assert 'most of the others: head.fc with head.fc.weight' in summary
    assert picture.stat().st_size > 1000
    run_tool(monkeypatch, 'plan', *arguments)
    share = summary.split()[0]
    assert f"of all layers' weights and {share} of the MACs" in \
        capsys.readouterr().out


@pytest.mark.parametrize('arguments, message', [
    (['policy', 'CONFIG', 'no.pth', '--budget', 'size'],
     "--budget 'size' is none: give size=RATIO"),
    (['sensitivity', 'CONFIG', 'no.pth', '--batches', '0'],
     'batches is 0, allowed: 1 or more'),
    (['coverage', 'CONFIG', '--picture', str(IMAGE)], 'exists; remove it or'),
    (['policy', 'CONFIG', 'no.pth', '--budget', 'foo=1'],
     "--budget 'foo=1' is none: give size=RATIO"),
    (['policy', 'CONFIG', 'no.pth', '--budget', 'size=nan'],
     "--budget 'size=nan' is none"),
    (['plan', 'CONFIG', '--shape', '8', '9', '--cfg-options',
      'model.head.in_channels=3'],
     'cannot predict a random image of 3 x 8 x 9, try another --shape: '),
    (['report', 'CONFIG', 'no.pth', __file__], 'exists; remove it or')])
def test_bad_input_of_the_measuring_commands(arguments, message, monkeypatch,
                                             capsys):
    config = ROOT / 'configs' / CONFIGS['cls']
    with pytest.raises(SystemExit) as exit:
        run_tool(monkeypatch, *(config if each == 'CONFIG' else each
                                for each in arguments))
    assert exit.value.code == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('apart, told', [
    ([5., 9.], True), ([5., 99.], False), ([5.], False)])
def test_a_file_of_another_checkpoint_is_told_by_all_its_layers(
        apart, told, monkeypatch, capsys):
    found = []
    for name, decibels in zip('ab', apart):
        found.append(Difference(name))
        found[-1].own = Energy(1., 10**(-decibels / 10), 1)
    monkeypatch.setattr('gdrq_mm.openmmlab.diff.diff_checkpoints',
                        lambda *args, **kwargs: found)
    run_tool(monkeypatch, 'diff', 'mine.pth', 'other.onnx',
             ROOT / 'configs' / CONFIGS['cls'])
    said = 'other.onnx may be of another checkpoint than mine.pth'
    assert (said in capsys.readouterr().out) is told


@pytest.mark.parametrize('arguments, message', [
    (['plan', '--shape', '-1', '32'], '--shape: -1; give 1 or more'),
    (['plan', '--shape', 'x', '32'], "--shape: invalid int value: 'x'"),
    (['sensitivity', '--most', '-1'], '--most: -1; give 1 or more'),
    (['sensitivity', 'a.py', 'a.pth', '--json', str(ROOT)],
     'a folder; give the name of a file'),
    (['plan', '--cfg-options', 'foo'], "--cfg-options: 'foo' is no NAME")])
def test_wrong_options_of_the_measuring_commands(arguments, message,
                                                 monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run_tool(monkeypatch, *arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


WITH_RESIDUAL = ROOT / 'configs' / CONFIGS['cls'].replace('w2a4', 'w4a4-r8')
OUTPUTS = ['backbone.layer*.0', 'backbone.layer*.*.bn2',
           'backbone.layer*.0.downsample.1', 'backbone.layer4.1']


@pytest.fixture
def residuals(monkeypatch, capsys):
    """What ``residuals`` prints for a config."""

    def run(config, *args):
        tool = str(ROOT / 'tools' / 'analyze.py')
        monkeypatch.setattr(sys, 'argv', [
            tool, 'residuals', str(config), '--shape', '32', '32', *args])
        runpy.run_path(tool, run_name='__main__')
        return capsys.readouterr().out

    return run


def test_residuals_prints_outputs_to_paste(residuals):
    pasted = eval('dict(' + residuals(ROOT / 'configs' / CONFIGS['cls']) + ')')
    assert pasted['residual']['outputs'] == OUTPUTS
    with_them = Config.fromfile(WITH_RESIDUAL)
    assert with_them.custom_hooks[0].quantization.residual.outputs == OUTPUTS


def test_residuals_says_that_nothing_is_left_to_round(residuals):
    assert residuals(WITH_RESIDUAL) == \
        '# no output of a module is left to round\n'


def test_residuals_of_a_model_without_known_post_processing(residuals,
                                                            tmp_path):
    config = tmp_path / 'centernet.py'
    config.write_text('''
model = dict(
    type='CenterNet', data_preprocessor=dict(type='DetDataPreprocessor'),
    backbone=dict(type='ResNet', depth=18, base_channels=8, out_indices=(3, ),
                  norm_eval=False),
    neck=dict(type='CTResNetNeck', in_channels=64,
              num_deconv_filters=(8, 8, 8), num_deconv_kernels=(4, 4, 4),
              use_dcn=False),
    bbox_head=dict(type='CenterNetHead', num_classes=2, in_channels=8,
                   feat_channels=8),
    test_cfg=dict(topk=9, local_maximum_kernel=3, max_per_img=9))
default_scope = 'mmdet'
custom_imports = dict(imports=['gdrq_mm', 'mmdet.models'])
custom_hooks = [dict(type='GDRQHook', quantization=dict(
    weight=dict(bits=4), activation=dict(bits=4)))]
''')
    with pytest.raises(SystemExit):
        residuals(config)
    assert 'backbone.layer*.0' in eval('dict(' + residuals(
        config, '--raw') + ')')['residual']['outputs']


def test_residuals_keeps_the_outputs_of_the_config(residuals):
    part = 'custom_hooks.0.quantization.residual.outputs'
    shown = residuals(WITH_RESIDUAL, '--cfg-options',
                      f"{part}=['{OUTPUTS[0]}','{OUTPUTS[1]}']")
    assert set(eval('dict(' + shown + ')')['residual']['outputs']) == \
        set(OUTPUTS)
