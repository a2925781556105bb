"""Every verb of tools/analyze.py, on models that no demo uses."""
import copy
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from gdrq_mm.openmmlab.calibrate import calibrate_checkpoint

ROOT = Path(__file__).resolve().parents[2]
# The tiny config that brings the data -> the model in place of its own, and
# options that make it small.
MODELS = dict(
    retinanet=('faster_rcnn', 'mmdet::_base_/models/retinanet_r50_fpn.py', {
        'backbone': dict(depth=18, base_channels=4, init_cfg=None),
        'neck': dict(in_channels=[4, 8, 16, 32], out_channels=8),
        'bbox_head': dict(num_classes=10, in_channels=8, feat_channels=8,
                          stacked_convs=1),
        'test_cfg': dict(score_thr=0., max_per_img=8)}),
    segformer=('pspnet', 'mmseg::_base_/models/segformer_mit-b0.py', {
        'data_preprocessor': dict(size=(48, 96)),
        'backbone': dict(embed_dims=8, num_layers=[1, 1, 1, 1],
                         num_heads=[1, 1, 1, 1]),
        'decode_head': dict(in_channels=[8, 8, 8, 8], channels=8,
                            norm_cfg=dict(type='BN'))}),
    mobilenet_v2=('resnet', 'mmpretrain::_base_/models/mobilenet_v2_1x.py', {
        'backbone': dict(widen_factor=.1),
        'head': dict(num_classes=20, in_channels=1280, topk=(1, ))}))
SHAPES = dict(retinanet=(64, 64), segformer=(48, 96), mobilenet_v2=(32, 32))


@pytest.fixture
def files(request, load_config, build_model, tmp_path):
    """Config of a quantized model, checkpoints of the float and of the
    calibrated one."""
    base, model, options = MODELS[request.param]
    cfg = load_config(base, custom_hooks=[dict(
        type='GDRQHook', quantization=dict(
            weight=dict(bits=4), activation=dict(bits=4)))])
    base = tmp_path / 'base.py'
    base.write_text(f'_base_ = [{model!r}]\n')
    base = Config.fromfile(base)
    base.merge_from_dict(dict(model=options))
    cfg.model = base.model
    cfg.val_dataloader = cfg.test_dataloader
    cfg.val_evaluator = cfg.test_evaluator
    names = [str(tmp_path / name) for name in (
        'config.py', 'float.pth', 'calibrated.pth')]
    cfg.dump(names[0])
    torch.save(dict(state_dict=build_model(copy.deepcopy(cfg)).state_dict()),
               names[1])
    calibrate_checkpoint(*names, batches=1)
    return names


@pytest.fixture
def analyze(monkeypatch, capsys, tmp_path):
    """What a verb prints; the arguments are those of the command line."""
    monkeypatch.chdir(tmp_path)
    tool = str(ROOT / 'tools' / 'analyze.py')

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        runpy.run_path(tool, run_name='__main__')
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize('files', MODELS, indirect=True)
def test_every_verb_runs(files, analyze, request, tmp_path):
    config, start, trained = files
    shape = ['--shape', *SHAPES[request.node.callspec.params['files']]]
    assert 'layers' in analyze('plan', config, *shape)
    rules = eval('dict(' + analyze('ends', config, *shape) + ')')['rules']
    assert len(rules) > 1
    assert 'residual' in analyze('residuals', config, *shape)
    assert 'multiply-accumulates' in analyze('coverage', config, *shape)
    kept = ['--json', tmp_path / 'kept.json', '--batches', 1]
    alone = analyze('sensitivity', config, start, '--bits', 2, 4, '--by',
                    'stage', '--ways', 'alone', *kept)
    assert 'backbone' in alone
    found = analyze('policy', config, start, '--bits', 2, 4, '--budget',
                    'size=0.1', '--measure', *kept)
    assert 'rules=[' in found
    measured = json.loads((tmp_path / 'kept.json').read_text())['figures']
    assert sum('calibrated' in key for key in measured) == 2
    parted = analyze('diff', 'float', trained, config, '--batches', 1)
    assert 'backbone' in parted
    page = tmp_path / 'page.html'
    analyze('report', config, trained, page, *kept)
    assert 'at 2 bits, one at a time' in page.read_text()
