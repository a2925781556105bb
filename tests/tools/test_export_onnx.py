"""tools/export_onnx.py: a checked file and its report, or nothing."""
import json
import shlex
import subprocess
import sys
from pathlib import Path

import mmcv
import numpy as np
import onnx
import pytest
import torch
from mmengine.config import Config
from mmpretrain.datasets import CIFAR10

from gdrq_mm.analysis.diff import first_parted
from gdrq_mm.deployable import load_model
from gdrq_mm.openmmlab.diff import diff_checkpoints

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'export_onnx.py'
sys.path.insert(0, str(TOOL.parent))

import export_onnx  # noqa: E402
from export_onnx import channel_order  # noqa: E402
from exporting.arguments import parse_args  # noqa: E402


def export(*args):
    return subprocess.run([sys.executable, str(TOOL), *map(str, args)],
                          capture_output=True, text=True)


@pytest.fixture
def trained(make_runner, tmp_path):
    hook = dict(type='GDRQHook', quantization=dict(
        weight=dict(bits=4), activation=dict(bits=4),
        rules=[dict(match='head.fc', skip=True)]))
    runner = make_runner('resnet', hook)
    runner.cfg.custom_imports = dict(imports=['gdrq_mm'])
    runner.cfg.dump(str(tmp_path / 'config.py'))
    runner.train()
    return tmp_path / 'config.py', tmp_path / 'run' / 'epoch_2.pth'


def test_a_checked_and_measured_file_is_written_or_none(
        trained, tmp_path):
    out, figures = tmp_path / 'model.onnx', tmp_path / 'figures.json'
    arguments = (*trained, '--out', out, '--eval', '--json', figures,
                 '--weights', 'int4', '--calibration-images', '4',
                 '--speed-rounds', '2', '--align', tmp_path / 'aligned.pth')
    result = export(*arguments)
    assert result.returncode == 0, result.stderr
    assert 'float: head.fc (not quantized)' in result.stdout
    figures = json.loads(figures.read_text())
    assert set(figures['kernels'].values()) == {'QLinearConv'}
    assert figures['arguments']['weights'] == 'int4'
    assert figures['versions'].keys() == {'gdrq_mm', 'torch', 'onnxruntime'}
    assert figures['codes_equal'] == figures['codes'] > 0
    assert figures['size'] == out.stat().st_size < figures['float_size']
    assert 'biases left as they were: none' in result.stdout
    _, aligned = load_model(str(trained[0]), str(tmp_path / 'aligned.pth'))
    _, before = load_model(*map(str, trained))
    pairs = zip(aligned.state_dict().items(), before.state_dict().values())
    changed = [key for (key, ours), theirs in pairs
               if not torch.equal(ours, theirs)]
    assert changed and all('bn' in key or 'downsample.1' in key
                           for key in changed)
    metrics = figures['metrics']
    assert metrics['onnxruntime']['accuracy/top1'] == \
        metrics['integer']['accuracy/top1']
    assert sorted(tmp_path.glob('*.part')) == []
    before = out.read_bytes()
    result = export(*arguments)
    assert result.returncode == 1
    assert 'exists' in result.stderr and 'Traceback' not in result.stderr
    assert out.read_bytes() == before

    other, aligned = tmp_path / 'other.onnx', tmp_path / 'other.pth'
    result = export(*trained, '--out', other, '--weights', 'int2',
                    '--align', aligned)
    assert result.returncode == 1
    assert 'no layer has weights of 2 or fewer bits' in result.stderr
    assert "; choose 'int8' or 'int4'" in result.stderr
    assert not other.exists() and sorted(tmp_path.glob('other*')) == []
    result = export(*trained, '--out', other, '--align', other)
    assert result.returncode == 1 and 'written twice' in result.stderr

    raw = tmp_path / 'raw.onnx'
    result = export(*trained, '--out', raw, '--raw', '--input', 'uint8',
                    '--calibration', 'none', '--shape', '32', '48',
                    '--dynamic', 'batch,size', '--opset', '19',
                    '--calibration-images', '2', '--speed-rounds', '0')
    assert result.returncode == 0, result.stderr
    proto = onnx.load(str(raw))
    assert [each.name for each in proto.graph.output] == ['logits']
    image, = proto.graph.input
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    sides = [each.dim_value for each in image.type.tensor_type.shape.dim]
    assert sides == [0, 3, 0, 0]  # others have names
    assert proto.opset_import[0].version == 19
    assert 'of inputs 2 x 3 x 41 x 37' in result.stdout
    assert 'calibrated with synthetic images' in result.stdout
    told = {each.key: each.value for each in proto.metadata_props}
    assert json.loads(told['data_preprocessor'])['mean']
    assert 'uint8' in told['input'] and told['channel_order'] == 'bgr'
    assert told['calibration'] == 'synthetic images'
    assert told['calibration_images'] == '2'
    assert len(json.loads(told['padding'])) == 3
    # As the file was calibrated: padded to 32 x 48, without post-processing.
    assert first_parted(diff_checkpoints(
        str(trained[1]), str(raw), str(trained[0]), batches=1)) is None


def test_a_config_without_a_test_set_exports(trained, tmp_path):
    out = tmp_path / 'model.onnx'
    without = ['--calibration', 'none', '--calibration-images', '1',
               '--speed-rounds', '0', '--out', out, '--cfg-options',
               'test_dataloader=None', 'test_cfg=None', 'test_evaluator=None']
    result = export(*trained, *without)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert 'has no test_dataloader' in result.stderr
    assert '--shape HEIGHT WIDTH' in result.stderr
    result = export(*trained, '--shape', '32', '32', *without)
    assert result.returncode == 0, result.stderr
    told = {each.key: each.value
            for each in onnx.load(str(out)).metadata_props}
    assert json.loads(told['classes'])


def test_missing_data_are_told_before_anything_is_written(trained, tmp_path):
    out, gone = tmp_path / 'model.onnx', tmp_path / 'gone'
    result = export(*trained, '--out', out, '--cfg-options',
                    f'train_dataloader.dataset.data_root={gone}/')
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert f"cannot be read ([Errno 2] No such file or directory: '{gone}" in \
        result.stderr
    assert '--calibration DIR' in result.stderr
    assert '--calibration none' in result.stderr
    result = export(*trained, '--out', out, '--align', tmp_path / 'other.pth',
                    '--eval', '--calibration', 'none', '--shape', '32', '32',
                    '--cfg-options',
                    f'test_dataloader.dataset.data_root={gone}/')
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert 'the test set of --eval cannot be read' in result.stderr
    assert 'or leave out --eval' in result.stderr
    assert not out.exists() and not (tmp_path / 'other.pth').exists()


def test_a_folder_of_images_calibrates_and_openvino_is_measured(
        trained, tmp_path):
    pytest.importorskip('openvino', reason='pip install openvino')
    out, figures = tmp_path / 'model.onnx', tmp_path / 'figures.json'
    images = tmp_path / 'images'
    for number, name in enumerate(('a.png', 'more/b.jpg')):
        mmcv.imwrite(np.full((36, 40, 3), 99 * number, np.uint8),
                     str(images / name))
    (images / 'read.me').write_text('no image')
    result = export(*trained, '--out', out, '--calibration', images,
                    '--check', 'openvino', '--eval', '--json', figures,
                    '--speed-rounds', '1')
    assert result.returncode == 0, result.stderr
    assert 'images: 36 x 40' in result.stdout  # the folder's, not 32 x 32
    told = {each.key: each.value
            for each in onnx.load(str(out)).metadata_props}
    assert told['calibration'] == 'folder of images'
    assert told['calibration_images'] == '2'  # there are no more
    figures = json.loads(figures.read_text())
    found = figures['openvino']
    assert 0 < found['integer_layers'] <= found['layers']
    assert (f'OpenVINO: {found["integer_layers"]} of {found["layers"]} layers '
            'on integers') in result.stdout
    assert found['time_ratio'] == pytest.approx(
        found['ms'] / found['float_ms'])
    metrics = figures['metrics']
    assert metrics.keys() == {'quantized', 'integer', 'onnxruntime',
                              'onnxruntime_unoptimised', 'openvino'}
    name = 'accuracy/top1'
    assert abs(metrics['openvino'][name] - metrics['onnxruntime'][name]) <= .2

    out = tmp_path / 'uint8.onnx'
    result = export(*trained, '--out', out, '--input', 'uint8', '--eval',
                    '--check', 'openvino', '--json', tmp_path / 'uint8.json',
                    '--speed-rounds', '1')
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / 'uint8.json').read_text())['metrics']
    assert metrics['onnxruntime'] == metrics['integer']
    assert abs(metrics['openvino'][name] - metrics['integer'][name]) <= .2

    result = export(*trained, '--out', tmp_path / 'other.onnx',
                    '--calibration', tmp_path / 'run')
    assert result.returncode == 1
    assert 'run has no image (.bmp, ' in result.stderr
    (images / 'a.png').write_text('no image')
    result = export(*trained, '--out', tmp_path / 'other.onnx',
                    '--calibration', images)
    assert result.returncode == 1
    assert 'a.png cannot be read as an image: remove it' in result.stderr
    assert not (tmp_path / 'other.onnx').exists()


@pytest.mark.parametrize('arguments, said', [
    ('--shape 0 0', '--shape is 0 0; give a height and a width of 1 or more'),
    ('--shape -5 64', '--shape is -5 64; give a height and a width'),
    ('--calibration-images -3', '--calibration-images is -3; give 1 or more'),
    ('--speed-rounds -1', '--speed-rounds is -1; give 0 or more'),
    ('--dynamic batch,sizes', "'batch,sizes', allowed: batch, size or batch,"),
    ('--dynamic "batch, size"', 'batch,size, without spaces'),
    ('--opset 12', 'opset is 12, allowed: 13 to 23'),
    ('--opset 19 --target finn', 'finn files have fixed shapes and opset 18'),
    ('--weights int2 --target tensorrt', 'is a container of qdq files'),
    ('--check openvino --target qonnx', 'leave out --target qonnx'),
    ('--eval --target hls4ml', 'leave out --eval and --input'),
    ('--align a.pth --target tensorrt', 'files are float; leave it out'),
    ('--raw --eval', '--eval needs post-processing, which --raw leaves out')])
def test_wrong_arguments_are_refused_by_the_parser(
        arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['export', 'no.py', 'no.pth',
                                      *shlex.split(arguments)])
    with pytest.raises(SystemExit) as stopped:
        parse_args(export_onnx.__doc__)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize('preprocessor, prepared, order', [
    (dict(to_rgb=True), False, 'bgr'), (dict(bgr_to_rgb=True), True, 'rgb'),
    (dict(), True, 'bgr'), (dict(rgb_to_bgr=True), False, 'rgb'),
    (dict(rgb_to_bgr=True), True, 'bgr')])
def test_the_order_of_channels_is_that_of_the_input(
        preprocessor, prepared, order):
    assert channel_order(preprocessor, prepared) == order


def config_of(scope='mmpretrain', **dataset):
    return Config(dict(default_scope=scope, model=dict(),
                       test_dataloader=dict(dataset=dataset)))


@pytest.mark.parametrize('cfg, trained, names', [
    (config_of(type='ImageNet'), ['cat', 'dog'], ['cat', 'dog']),
    (config_of(type='CustomDataset', metainfo=None), None, None),
    (config_of(type='CustomDataset', classes=['a']), None, ['a']),
    (config_of(type='ImageNet', metainfo=dict(classes=['b'])), None, ['b']),
    (config_of(type='CIFAR10'), None, CIFAR10.METAINFO['classes'])])
def test_the_file_names_the_classes(cfg, trained, names, tmp_path):
    torch.save(dict(state_dict={}, meta=dict(
        dataset_meta=trained and dict(classes=trained))), tmp_path / 'a.pth')
    assert export_onnx._classes(cfg, str(tmp_path / 'a.pth')) == names


def test_a_checkpoint_of_another_head_is_refused(trained, tmp_path):
    """Its head would stay random, and every check of the file succeed."""
    out = tmp_path / 'other.onnx'
    result = export(*trained, '--out', out, '--cfg-options',
                    'model.head.num_classes=3')
    assert result.returncode == 1 and not out.exists()
    assert 'of another architecture' in result.stderr
    assert 'head.fc.weight: checkpoint (' in result.stderr
