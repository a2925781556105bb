"""Runs whose float model teaches the quantized one."""
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import FlexibleRunner, Runner
from torch.nn.modules.batchnorm import _BatchNorm

from gdrq_mm.openmmlab.distill import META, build_teacher
from gdrq_mm.openmmlab.head_outputs import find_head_outputs
from gdrq_mm.openmmlab.hook import GDRQHook
from gdrq_mm.openmmlab.publish import inference_config
from gdrq_mm.training import Distillation, DistillConfig

QUANTIZATION = dict(weight=dict(bits=2), activation=dict(bits=4))
LABELS = dict(resnet=['cls'], pspnet=['seg', 'aux'],
              faster_rcnn=['rpn_cls', 'rpn_box', 'cls', 'box'])


@pytest.fixture
def start(build_model, tmp_path):
    """Function name -> checkpoint of a float model."""

    def make(name, seed=3):
        path = str(tmp_path / f'{name}_{seed}.pth')
        torch.save(dict(state_dict=build_model(name, seed=seed).state_dict(),
                        meta={}), path)
        return path

    return make


def hook(quantization=QUANTIZATION, **distill):
    return dict(type='GDRQHook', quantization=quantization, distill=distill)


def entries(losses):
    return {key[len('loss_distill_'):]: value
            for key, value in losses.items() if 'loss_distill' in key}


def checkpoint(runner, name):
    return torch.load(Path(runner.work_dir) / name, weights_only=True)


# -- what is added to the losses ----------------------------------------------


@pytest.mark.parametrize('name', LABELS)
def test_losses_of_all_heads_join_those_of_the_model(name, make_runner, start,
                                                     run_log):
    path = start(name)
    runner = make_runner(name, hook(weight=.5), load_from=path)
    runner.train()
    for losses in runner.record.losses:
        assert list(entries(losses)) == LABELS[name]
        # Low bits change every output.
        assert all(0 < value < 1e4 for value in entries(losses).values())
    log = run_log(runner)
    assert all(f'loss_distill_{label}: ' in log for label in LABELS[name])
    assert f'distills from {path}, weight 0.5, temperature 2; ' in log


@pytest.mark.parametrize('name', [
    *LABELS, 'retinanet', 'fcos', 'cascade_rcnn', 'yolox', 'detr',
    'dab_detr', 'ssd', 'deformable_detr'])
def test_equal_models_have_nothing_to_learn(name, any_model, load_batch):
    """Another batch, boxes or mode of the teacher would show."""
    task = name if name in LABELS else 'faster_rcnn'
    student, teacher = any_model(name), any_model(name)
    outputs, branches = find_head_outputs(student)
    assert [output.label for output in outputs] == LABELS.get(name) or dict(
        retinanet=['cls', 'box'], fcos=['cls', 'box', 'centerness'],
        yolox=['cls', 'box', 'obj'], detr=['cls', 'box'],
        dab_detr=['cls'], ssd=['cls', 'box'], deformable_detr=['cls'],
        cascade_rcnn=[*LABELS['faster_rcnn'][:2], *(
            f'{label}_{stage}' for stage in range(3)
            for label in ('cls', 'box'))])[name]
    student.train()
    for module in student.modules():  # as the teacher is
        if isinstance(module, (_BatchNorm, torch.nn.Dropout2d)):
            module.eval()
    distillation = Distillation(student, teacher, outputs, DistillConfig(),
                                branches)
    teacher.training = True  # as the hook has it
    distillation.start()
    data = student.data_preprocessor(load_batch(task), True)
    found = entries(student(**data, mode='loss'))
    assert list(found) == [output.label for output in outputs]
    for label, value in found.items():
        assert abs(float(value.detach())) < 1e-6, label
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.2)
    again = entries(student(**data, mode='loss'))
    assert all(float(value.detach()) > 1e-6 for value in again.values()), again
    distillation.stop()


@pytest.fixture
def any_model(load_config, build_model):
    """Function name -> a tiny model, of dense and cascaded heads as well."""

    def make(name):
        if name in LABELS:
            return build_model(name)
        cfg = load_config('faster_rcnn')
        from mmengine.hub import get_config
        stem = dict(retinanet='retinanet/retinanet_r50_fpn_1x_coco.py',
                    fcos='fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
                    cascade_rcnn='cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco'
                                 '.py',
                    yolox='yolox/yolox_tiny_8xb8-300e_coco.py',
                    detr='detr/detr_r50_8xb2-150e_coco.py',
                    dab_detr='dab_detr/dab-detr_r50_8xb2-50e_coco.py',
                    ssd='ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
                    deformable_detr='deformable_detr/'
                    'deformable-detr_r50_16xb2-50e_coco.py')[name]
        init_default_scope('mmdet')
        model = get_config(f'mmdet::{stem}').model
        if name == 'yolox':
            model.data_preprocessor.batch_augments = None
            model.backbone.widen_factor = .125
            model.neck.update(in_channels=[32, 64, 128], out_channels=16,
                              num_csp_blocks=1)
            model.bbox_head.update(num_classes=10, in_channels=16,
                                   feat_channels=16)
            cfg.model = model
            return build_model(cfg)
        if name == 'ssd':
            model.backbone.widen_factor = .25
            model.neck.update(in_channels=(24, 1280),
                              out_channels=(24, 1280, 16, 16, 8, 8))
            model.bbox_head.update(in_channels=(24, 1280, 16, 16, 8, 8),
                                   num_classes=10)
            cfg.model = model
            model = build_model(cfg)
            for module in model.modules():  # narrow and deep: it would vanish
                if isinstance(module, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(module.weight)
            return model
        if name.endswith('detr'):
            model.backbone.update(base_channels=4, init_cfg=None)
            model.update(num_queries=7)
            model.neck.update(
                out_channels=16, norm_cfg=None, in_channels=[128]
                if name != 'deformable_detr' else [32, 64, 128])
            for part, depth in (('encoder', 1), ('decoder', 2)):
                model[part].num_layers = depth
                layer = model[part].layer_cfg
                for key, attention in layer.items():
                    attention.update(
                        dict(feedforward_channels=8, embed_dims=16,
                             ffn_drop=0.) if key == 'ffn_cfg' else
                        dict(embed_dims=16, num_heads=2))
                    if name == 'deformable_detr' and key != 'ffn_cfg':
                        attention.dropout = 0.
                    for drop in ('dropout', 'attn_drop', 'proj_drop'):
                        if drop in attention:
                            attention[drop] = 0.
            model.positional_encoding.num_feats = 8
            model.bbox_head.update(embed_dims=16, num_classes=10)
            cfg.model = model
            return build_model(cfg)
        model.backbone.update(base_channels=4, init_cfg=None)
        model.neck.update(in_channels=[16, 32, 64, 128], out_channels=8)
        if name == 'cascade_rcnn':
            small = cfg.model.roi_head
            model.rpn_head.update(in_channels=8, feat_channels=8)
            roi_head = model.roi_head
            roi_head.bbox_roi_extractor = small.bbox_roi_extractor
            for head in roi_head.bbox_head:
                head.update(in_channels=8, fc_out_channels=16,
                            roi_feat_size=3, num_classes=10)
        else:
            model.bbox_head.update(in_channels=8, feat_channels=8,
                                   stacked_convs=1, num_classes=10,
                                   norm_cfg=None)
            if name == 'fcos':  # boxes that are scaled in eval mode alone
                model.bbox_head.norm_on_bbox = True
        cfg.model = model
        return build_model(cfg)

    return make


def test_outputs_of_ones_own(make_runner, start):
    outputs = {'backbone.layer*.2.bn3': 'l2', 'head.fc': 'sigmoid'}
    runner = make_runner('resnet', hook(outputs=outputs),
                         load_from=start('resnet'))
    # bn3 is followed by `out += identity`.
    with pytest.raises(RuntimeError, match='is changed in place after it'):
        runner.train()
    outputs = {'backbone.layer?': 'l2', 'head.fc': 'sigmoid'}
    runner = make_runner('resnet', hook(outputs=outputs),
                         load_from=start('resnet'))
    runner.train()
    assert list(entries(runner.record.losses[0])) == ['backbone_layer',
                                                      'head_fc']


def test_a_model_whose_losses_are_not_those_of_its_forward(
        make_runner, start, monkeypatch):
    runner = make_runner('resnet', hook(), load_from=start('resnet'))

    def train_step(data, optim_wrapper):
        data = runner.model.data_preprocessor(data, True)
        losses = runner.model.loss(data['inputs'], data['data_samples'])
        optim_wrapper.update_params(sum(losses.values()))
        return losses

    monkeypatch.setattr(runner.model, 'train_step', train_step)
    with pytest.raises(RuntimeError, match='distill added no loss.*mode='):
        runner.train()


# -- the teacher --------------------------------------------------------------


def test_the_teacher_is_no_part_of_what_is_trained_or_saved(
        make_runner, start, tmp_path):
    path = start('resnet')
    plain = make_runner('resnet', hook() | dict(distill=None), load_from=path,
                        work_dir=tmp_path / 'plain')
    plain.train()
    runner = make_runner('resnet', hook(), dict(type='EMAHook'),
                         load_from=path)
    runner.train()
    held = [sum(len(group['params'])
                for group in each.optim_wrapper.optimizer.param_groups)
            for each in (plain, runner)]
    assert held[0] == held[1]
    ours, theirs = (checkpoint(each, 'epoch_2.pth')
                    for each in (runner, plain))
    assert ours['state_dict'].keys() == theirs['state_dict'].keys()
    assert ours['meta'][META]['file'] == path
    assert set(ours) - set(theirs) == {'ema_state_dict'}
    teacher = next(hook for hook in runner.hooks if type(hook).__name__
                   == 'DistillHook').distillation.teacher
    for key, value in torch.load(path)['state_dict'].items():
        assert torch.equal(teacher.state_dict()[key], value), key


class RandomStates(Hook):
    """What the next random number would be, after every iteration."""
    priority = 'LOWEST'

    def __init__(self):
        self.found = []

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        self.found.append(torch.get_rng_state())


def test_a_teacher_draws_no_random_numbers_of_the_training(
        make_runner, start, tmp_path):
    path = start('faster_rcnn')
    states = []
    for distill in (None, {}):
        runner = make_runner('faster_rcnn', hook() | dict(distill=distill),
                             load_from=path, work_dir=tmp_path / str(distill))
        runner.register_hook(RandomStates())
        runner.train()
        states.append(runner.hooks[-1].found)
        if distill is None:
            plain = runner.record.losses[0]
    losses = runner.record.losses[0]  # the same boxes are drawn
    assert all(losses[key] == plain[key] for key in plain if key != 'loss')
    # Later on, how many boxes there are to draw from is another.
    without, taught = (found[0] for found in states)
    assert torch.equal(without, taught)


def test_hook_and_quantized_model_distill_alike(make_runner, load_config,
                                                start, tmp_path):
    path = start('resnet')
    by_hook = make_runner('resnet', hook(), load_from=path)
    cfg = load_config('resnet')
    cfg.merge_from_dict(dict(model=dict(
        type='QuantizedModel', architecture=cfg.model.type,
        quantization=QUANTIZATION)))
    by_model = make_runner(cfg, hook(quantization=None), load_from=path,
                           work_dir=tmp_path / 'model')
    for runner in (by_hook, by_model):
        runner.train()
    assert by_hook.record.losses == by_model.record.losses


def test_a_resumed_run_has_the_same_teacher(make_runner, start, tmp_path):
    path = start('resnet')
    whole = make_runner('resnet', hook(), load_from=path)
    whole.train()
    # mm tools put the training checkpoint in the place of load_from.
    resumed = make_runner(
        'resnet', hook(), resume=True, work_dir=tmp_path / 'resumed',
        load_from=str(Path(whole.work_dir) / 'epoch_1.pth'))
    resumed.train()
    assert resumed.record.losses == whole.record.losses[2:]


def test_a_resumed_run_refuses_another_teacher_in_its_place(
        make_runner, start, run_log, build_model, tmp_path):
    path = start('resnet')
    whole = make_runner('resnet', hook(), load_from=path)
    whole.train()
    half = dict(resume=True, load_from=str(Path(whole.work_dir)
                                           / 'epoch_1.pth'))
    other = start('resnet', seed=4)
    torch.save(torch.load(other), path)
    resumed = make_runner('resnet', hook(), work_dir=tmp_path / 'a', **half)
    with pytest.raises(ValueError, match='other weights than the one that '
                       'the resumed run began with.*give that one by'):
        resumed.train()
    asked = make_runner('resnet', hook(teacher=other), work_dir=tmp_path / 'b',
                        **half)
    asked.train()
    assert 'has other weights than the one that the resumed' in run_log(asked)
    assert f"distill.teacher: None -> '{other}'" in run_log(asked)


def test_a_run_that_is_resumed_without_its_teacher_says_so(
        make_runner, start, tmp_path):
    whole = make_runner('resnet', hook() | dict(distill=None),
                        load_from=start('resnet'))
    whole.train()
    resumed = make_runner(
        'resnet', hook(), resume=True, work_dir=tmp_path / 'resumed',
        load_from=str(Path(whole.work_dir) / 'epoch_1.pth'))
    with pytest.raises(ValueError, match=(
            'the checkpoint that the run goes on from was trained without '
            r"one; give the float model by distill=dict\(teacher=")):
        resumed.train()


@pytest.mark.parametrize('file, message', [
    (None, 'distill has no teacher, because the run starts from no check'),
    ('gone.pth', 'the teacher of distill cannot be read'),
    ('quantized.pth', 'is quantized, so it is no teacher for distill; give'),
    ('backbone.pth', 'no teacher for distill, it does not hold all of the '
                     'float model: the checkpoint lacks 2 entries'),
    ('classes.pth', 'no teacher for distill, it does not hold all of the '
                    'float model: .* size mismatch for head.fc.weight'),
])
def test_what_is_no_teacher(file, message, make_runner, build_model,
                            tmp_path):
    from gdrq_mm import quantize_
    model = build_model('resnet')
    weights = model.state_dict()
    if file == 'quantized.pth':
        quantize_(model, QUANTIZATION)
        weights = model.state_dict()
    elif file == 'backbone.pth':
        weights = {key: value for key, value in weights.items()
                   if not key.startswith('head')}
    elif file == 'classes.pth':
        weights = {key: value[:5] if key.startswith('head') else value
                   for key, value in weights.items()}
    if file and file != 'gone.pth':
        torch.save(dict(state_dict=weights), tmp_path / file)
    given = dict(teacher=str(tmp_path / file)) if file else {}
    runner = make_runner('resnet', hook(**given))
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.record.losses == []


def test_a_pretrained_model_is_a_start_as_well(make_runner, load_config,
                                               start, run_log):
    cfg = load_config('resnet')
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint=start('resnet'))
    runner = make_runner(cfg, hook())
    runner.train()
    assert f'distills from {cfg.model.init_cfg.checkpoint}' in run_log(runner)


def test_a_teacher_is_the_float_model_of_a_quantized_config(load_config,
                                                            start):
    cfg = load_config('resnet')
    init_default_scope('mmpretrain')
    cfg.merge_from_dict(dict(model=dict(
        type='QuantizedModel', architecture=cfg.model.type,
        quantization=QUANTIZATION)))
    before = cfg.pretty_text
    teacher = build_teacher(cfg, start('resnet'))
    assert type(teacher).__name__ == 'ImageClassifier'
    assert not [key for key in teacher.state_dict() if 'quantiz' in key]
    assert cfg.pretty_text == before


def test_a_published_config_leaves_the_teacher_behind(load_config):
    cfg = load_config('resnet')
    cfg.custom_hooks = [hook(teacher='/home/me/float.pth')]
    published = inference_config(cfg)
    assert published.model.type == 'QuantizedModel'
    assert 'distill' not in published.custom_hooks[0]
    assert '/home/me' not in published.pretty_text


# -- what is refused ----------------------------------------------------------


@pytest.mark.parametrize('outputs, message', [
    ({'hed.fc': 'softmax'}, "'hed.fc' matches no module; did you mean "
                            "'head.fc'"),
    ({'backbone.*.*.*.*.*': 'l2'}, 'matches no module'),  # but quantizers
])
def test_unknown_modules(outputs, message, make_runner, start):
    runner = make_runner('resnet', hook(outputs=outputs),
                         load_from=start('resnet'))
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.record.losses == []


def test_a_float_model_needs_no_teacher(make_runner, start):
    runner = make_runner('resnet', hook(quantization={}),
                         load_from=start('resnet'))
    with pytest.raises(ValueError, match='distill is .*as nothing is quant'):
        runner.train()


def test_heads_that_are_not_known(build_model):
    model = build_model('resnet')
    model.head = torch.nn.Identity()
    with pytest.raises(ValueError, match='finds no class scores, boxes or '
                       'logits in the heads of ImageClassifier; name'):
        find_head_outputs(model)
    model.head = torch.nn.Sequential(torch.nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"outputs={'head\.0': 'softmax'}"):
        find_head_outputs(model)


def test_classes_of_many_labels_are_each_by_themselves(build_model,
                                                       load_config):
    cfg = load_config('resnet')
    cfg.model.head.type = 'MultiLabelLinearClsHead'
    cfg.model.head.pop('loss', None)
    cfg.model.head.pop('topk', None)
    (output, ), _ = find_head_outputs(build_model(cfg))
    assert output.kind == 'sigmoid'


def test_a_softmax_over_anchors_knows_its_classes(any_model):
    model = any_model('ssd')
    found = {output.label: output for output in find_head_outputs(model)[0]}
    assert found['cls'].classes == 11  # background as well
    assert found['box'].classes is None
    assert len(found['cls'].modules) == 6  # levels


def test_queries_that_are_chosen_have_no_teacher(any_model):
    model = any_model('deformable_detr')
    model.bbox_head.as_two_stage = True
    with pytest.raises(ValueError, match='finds no class scores'):
        find_head_outputs(model)


def test_one_hook_serves_several_runners(start, make_runner):
    shared = GDRQHook(**{key: value for key, value in hook().items()
                         if key != 'type'}, bn_batches=1)
    for _ in range(2):
        runner = make_runner('resnet', load_from=start('resnet'))
        runner.register_hook(shared)
        runner.train()
        kinds = [type(each).__name__ for each in runner.hooks]
        for kind in ('DistillHook', 'NormStatisticsHook', 'DistributionHook'):
            assert kinds.count(kind) == 1, kind


def test_what_a_resumed_runner_found_is_not_of_the_next_one(
        make_runner, run_log, tmp_path):
    """Its model is fitted when its rounding begins."""
    kept = {key: value for key, value in hook().items()
            if key not in ('type', 'distill')}
    shared = GDRQHook(**kept, bn_batches=1)
    for name, options in (('first', {}), ('second', dict(resume=True)),
                          ('third', {})):
        runner = make_runner(
            'resnet', work_dir=tmp_path / name.replace('second', 'first'),
            experiment_name=name, train_cfg=dict(
                max_epochs=2 if name == 'second' else 1), **options)
        runner.register_hook(shared)
        runner.train()
        before = run_log(runner).split('Epoch(train)')[0]
        fitted = before.count('normalization recalibrated')
        assert fitted == (name != 'second'), name


@pytest.mark.parametrize('kind', [Runner, FlexibleRunner])
def test_a_resumed_run_of_either_runner_finds_its_teacher(
        kind, load_config, start, run_log, tmp_path):
    path, cfg = start('resnet'), load_config('resnet')

    def runner(epochs, name, **options):
        strategy = dict(strategy=dict(type='SingleDeviceStrategy')) \
            if kind is FlexibleRunner else {}
        return kind.from_cfg(Config(dict(
            model=dict(cfg.model, type='QuantizedModel',
                       architecture=cfg.model.type,
                       quantization=QUANTIZATION),
            work_dir=str(tmp_path), train_dataloader=cfg.train_dataloader,
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=.01)),
            default_scope=cfg.default_scope, experiment_name=name,
            env_cfg=dict(cudnn_benchmark=False), log_level='INFO',
            custom_hooks=[dict(type='GDRQHook', distill=options)],
            **strategy, **(dict(resume=True) if epochs > 1 else dict(
                load_from=path)))))

    runner(1, 'first').train()
    resumed = runner(2, 'second')
    resumed.train()
    assert f'distills from {path}' in run_log(resumed)
    other = runner(3, 'third', teacher=start('resnet', seed=4))
    other.train()
    assert 'has other weights than the one that the resumed' in run_log(other)
