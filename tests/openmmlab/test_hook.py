import json
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.runner.checkpoint import save_checkpoint
from torch import nn

from gdrq_mm import GDRQHook
from gdrq_mm.training import any_threshold, get_state

QUANTIZATION = dict(weight=dict(bits=4), activation=dict(bits=4))
SCALARS = ['gdrq_ql', 'gdrq_weight_clip', 'gdrq_act_clip', 'gdrq_clipped',
           'gdrq_phase']


def hook(quantization=QUANTIZATION, **kwargs):
    return dict(type='GDRQHook', quantization=quantization, **kwargs)


def as_quantized(cfg, quantization=QUANTIZATION):
    cfg.merge_from_dict(dict(model=dict(
        type='QuantizedModel', architecture=cfg.model.type,
        quantization=quantization)))
    return cfg


def checkpoint(runner, name):
    return torch.load(Path(runner.work_dir) / name, weights_only=True)


def phase_index(checkpoint):
    return int(checkpoint['state_dict']['quantization_state.phase_index'])


def scalars(runner):
    path = Path(runner.log_dir) / 'vis_data' / 'scalars.json'
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- arguments ---------------------------------------------------------------


@pytest.mark.parametrize('kwargs, message', [
    (dict(begin_iter=-1), 'begin_iter is -1'),
    (dict(begin_epoch=-2), 'begin_epoch is -2'),
    (dict(begin_iter=1.5), 'begin_iter is 1.5'),
    (dict(begin_epoch='3'), "begin_epoch is '3'"),
    (dict(begin_iter=2, begin_epoch=1), 'both given'),
    (dict(bn_batches=-1), 'bn_batches is -1'),
    (dict(begin_iter=True), 'begin_iter is True'),
    (dict(bn_batches=1.), 'bn_batches is 1.0'),
    (dict(lr_mult=0.), 'lr_mult is 0.0, allowed: a number from 1e-6 to 1e6'),
    (dict(lr_mult=float('inf')), 'lr_mult is inf'),
    (dict(lr_mult=float('nan')), 'lr_mult is nan'),
])
def test_begins_that_make_no_sense_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GDRQHook(QUANTIZATION, **kwargs)


def test_begin_by_epoch_in_a_run_by_iteration_is_refused(make_runner):
    """Such a run stays in epoch 0: rounding would never begin."""
    runner = make_runner('pspnet', hook(begin_epoch=1))
    with pytest.raises(ValueError, match='begin_epoch=1.*use begin_iter'):
        runner.train()


@pytest.mark.parametrize('kwargs', [dict(begin_iter=4), dict(begin_epoch=2)])
def test_begin_that_the_run_does_not_reach_is_warned_of(
        kwargs, make_runner, run_log):
    runner = make_runner('resnet', hook(**kwargs))
    runner.train()
    assert set(runner.record.phases) == {'reshape'}
    assert 'rounding does not begin in this run' in run_log(runner)


@pytest.mark.parametrize('quantization, error, message', [
    (dict(weigth=dict(bits=4)), ValueError, "did you mean 'weight'"),
    (dict(weight=dict(bits=9)), ValueError, 'weight.bits is 9'),
    (dict(weight=dict(bits=4), rules=[dict(match='backbne.*', skip=True)]),
     ValueError, "'backbne.*' matches no layer"),
    ([4, 4], TypeError, 'must be a dict'),
])
def test_bad_quantization_stops_the_run_before_it_trains(
        quantization, error, message, make_runner):
    runner = make_runner('resnet', hook(quantization))
    with pytest.raises(error, match=message):
        runner.train()
    assert runner.record.losses == []


def test_float_model_without_quantization_is_refused(make_runner):
    runner = make_runner('resnet', dict(type='GDRQHook'))
    with pytest.raises(ValueError, match='GDRQHook got no quantization, and'):
        runner.train()


def test_a_quantized_part_alone_is_named(make_runner, load_config):
    cfg = load_config('resnet')
    cfg.merge_from_dict(dict(model=dict(backbone=dict(
        type='QuantizedModel', architecture=cfg.model.backbone.type,
        quantization=dict(weight=dict(bits=4))))))
    runner = make_runner(cfg, dict(type='GDRQHook'))
    with pytest.raises(ValueError, match=(
            'of the model only backbone is a QuantizedModel: make the whole '
            'model one')):
        runner.train()


def test_quantized_model_needs_no_quantization_in_the_hook(
        make_runner, load_config):
    runner = make_runner(as_quantized(load_config('resnet')),
                         dict(type='GDRQHook', begin_iter=1))
    runner.train()
    assert runner.record.phases == ['reshape'] + ['quantize'] * 3


def test_hook_and_quantized_model_may_agree(make_runner, load_config):
    runner = make_runner(as_quantized(load_config('resnet')), hook())
    runner.train()
    assert len(runner.record.losses) == 4


def test_hook_that_contradicts_the_quantized_model_is_refused(
        make_runner, load_config):
    runner = make_runner(as_quantized(load_config('resnet')),
                         hook(dict(weight=dict(bits=2))))
    with pytest.raises(ValueError, match='another config'):
        runner.train()


def test_nothing_to_quantize_is_warned_of_and_trains_as_float(
        make_runner, run_log, tmp_path):
    plain = make_runner('resnet', work_dir=tmp_path / 'plain')
    plain.train()
    runner = make_runner('resnet', hook({}))
    runner.train()
    assert 'nothing is quantized' in run_log(runner)
    assert runner.record.losses == plain.record.losses
    for key, value in plain.model.state_dict().items():
        assert torch.equal(runner.model.state_dict()[key], value), key


def test_hook_and_quantized_model_train_alike(
        make_runner, load_config, tmp_path):
    by_hook = make_runner('resnet', hook(), work_dir=tmp_path / 'hook')
    by_hook.train()
    by_model = make_runner(as_quantized(load_config('resnet')),
                           work_dir=tmp_path / 'model')
    by_model.train()
    assert by_hook.record.losses == by_model.record.losses
    ours, theirs = by_hook.model.state_dict(), by_model.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


# -- order of conversion, EMA and loading ------------------------------------


class Look(Hook):
    """What the models hold when training begins."""
    priority = 'LOWEST'

    def before_train(self, runner):
        self.model = {key: value.clone()
                      for key, value in runner.model.state_dict().items()}
        ema = next(hook for hook in runner.hooks
                   if type(hook).__name__ == 'EMAHook').ema_model
        self.ema = {key: value.clone()
                    for key, value in ema.module.state_dict().items()}


def test_model_is_converted_before_ema_copies_it_and_before_weights_load(
        make_runner, build_model, tmp_path, run_log):
    pretrained = build_model('resnet', seed=7).state_dict()
    path = str(tmp_path / 'float.pth')
    save_checkpoint(dict(state_dict=pretrained), path)
    look = Look()
    # The EMA hook comes first in the config, the priority decides.
    runner = make_runner('resnet', dict(type='EMAHook'), hook(),
                         load_from=path)
    runner.register_hook(look)
    runner.train()
    assert look.model.keys() == look.ema.keys() > pretrained.keys()
    for key, value in pretrained.items():
        assert torch.equal(look.model[key], value), key
        assert torch.equal(look.ema[key], value), key
    log = run_log(runner)
    assert 'missing keys' not in log and 'unexpected key' not in log


def test_checkpoint_holds_the_state_of_the_quantizers(make_runner):
    runner = make_runner('resnet', hook())
    runner.train()
    saved = checkpoint(runner, 'epoch_2.pth')['state_dict']
    assert saved.keys() == runner.model.state_dict().keys()
    for name in ('backbone.conv1', 'backbone.layer4.2.conv3', 'head.fc'):
        assert saved[f'{name}.weight_quantizer.clip'].min() > 0
        assert saved[f'{name}.input_quantizer.clip'] > 0
        assert saved[f'{name}.input_quantizer.num_updates'] == 4
    assert saved['backbone.conv1.input_quantizer.signed']
    assert not saved['backbone.layer1.1.conv1.input_quantizer.signed']
    assert len(saved['quantization_state.schemes']) > 0


def test_ema_hook_that_comes_first_is_refused(make_runner):
    runner = make_runner('resnet', dict(type='EMAHook', priority=0),
                         hook(priority=1))
    with pytest.raises(ValueError, match=(
            'EMAHook has copied the float model before GDRQHook')):
        runner.train()


def test_a_second_hook_is_refused(make_runner):
    runner = make_runner('resnet', hook(begin_epoch=1), hook())
    with pytest.raises(ValueError, match='the run has 2 GDRQHooks'):
        runner.train()


def test_a_model_that_lost_layers_is_not_evaluated(make_runner):
    runner = make_runner('resnet', hook())
    runner.train()
    head = runner.model.head
    head.fc = nn.Linear(head.fc.in_features, head.fc.out_features)
    with pytest.raises(ValueError, match='1 quantized layers are no longer in '
                       'the model: head.fc.'):
        runner.test()
    with pytest.raises(ValueError, match='in the model: head.fc.'):
        runner.train()


def test_a_runner_that_trained_with_ema_may_test(make_runner, run_log):
    runner = make_runner('resnet', dict(type='EMAHook'), hook())
    runner.train()
    runner.test()
    assert 'this evaluates the quantized model' in run_log(runner)


class HandWritten:
    """An optimizer that is none of torch.optim."""

    def __init__(self, params, lr):
        self.param_groups = [dict(params=list(params), lr=lr)]

    def step(self):
        with torch.no_grad():
            for parameter in self.param_groups[0]['params']:
                if parameter.grad is not None:
                    parameter -= self.param_groups[0]['lr'] * parameter.grad

    def zero_grad(self, **kwargs):
        for parameter in self.param_groups[0]['params']:
            parameter.grad = None

    def state_dict(self):
        return {}


class OwnWrapper(OptimWrapper):

    def __init__(self, optimizer):
        self.optimizer, self._inner_count = optimizer, 0
        self.base_param_settings = None
        self._accumulative_counts, self._max_counts = 1, -1
        self._remainder_counts = -1
        self.clip_grad_kwargs = None
        self.message_hub = MessageHub.get_current_instance()


@pytest.mark.parametrize('own', [True, False])
def test_optimizer_whose_steps_are_not_seen_is_warned_of(
        own, make_runner, run_log, monkeypatch):
    monkeypatch.setattr(
        'gdrq_mm.openmmlab.run_log.ITERATIONS_TO_WAIT', 3)
    runner = make_runner('resnet', hook(), param_scheduler=None,
                         default_hooks=dict(checkpoint=None,
                                            param_scheduler=None))
    if own:
        runner.optim_wrapper = OwnWrapper(HandWritten(
            runner.model.parameters(), lr=.01))
    runner.train()
    assert ('no step of a torch.optim optimizer was seen in 3 iterations'
            in run_log(runner)) == own


def test_steps_that_accumulation_puts_off_are_not_missed(
        make_runner, run_log, monkeypatch):
    monkeypatch.setattr(
        'gdrq_mm.openmmlab.run_log.ITERATIONS_TO_WAIT', 3)
    runner = make_runner('resnet', hook(), **{
        'optim_wrapper.accumulative_counts': 4})
    runner.train()
    assert 'no step of a torch.optim' not in run_log(runner)


# -- phases ------------------------------------------------------------------


@pytest.mark.parametrize('kwargs', [dict(begin_iter=2), dict(begin_epoch=1)])
def test_phases_by_epoch_loop_are_in_log_scalars_and_checkpoints(
        kwargs, make_runner, run_log):
    runner = make_runner('resnet', hook(**kwargs))  # 2 epochs of 2 iterations
    runner.train()
    assert runner.record.phases == ['reshape'] * 2 + ['quantize'] * 2
    log = run_log(runner)
    assert "phase 'reshape' from iteration 0" in log
    assert "phase 'quantize' from iteration 2 (epoch 1)" in log
    assert log.count('GDRQHook: phase') == 2
    assert [line['gdrq_phase'] for line in scalars(runner)] == [0, 0, 1, 1]
    assert phase_index(checkpoint(runner, 'epoch_1.pth')) == 0
    assert phase_index(checkpoint(runner, 'epoch_2.pth')) == 1


def test_phases_by_iteration_loop_are_in_log_scalars_and_checkpoints(
        make_runner, run_log):
    runner = make_runner('pspnet', hook(begin_iter=2))
    runner.train()
    assert runner.record.phases == ['reshape'] * 2 + ['quantize'] * 2
    assert "phase 'quantize' from iteration 2" in run_log(runner)
    assert [line['gdrq_phase'] for line in scalars(runner)] == [0, 0, 1, 1]
    assert phase_index(checkpoint(runner, 'iter_2.pth')) == 0
    assert phase_index(checkpoint(runner, 'iter_4.pth')) == 1


def test_reshape_phase_is_resumed_in_its_middle(make_runner, tmp_path):
    work_dir = tmp_path / 'run'
    first = make_runner('resnet', hook(begin_iter=3), work_dir=work_dir,
                        train_cfg=dict(max_epochs=1))
    first.train()
    assert first.record.phases == ['reshape'] * 2
    second = make_runner('resnet', hook(begin_iter=3), work_dir=work_dir,
                         resume=True)
    second.train()
    assert second.record.phases == ['reshape', 'quantize']
    assert phase_index(checkpoint(second, 'epoch_2.pth')) == 1


def test_run_resumed_after_the_reshape_phase_goes_on_quantized(
        make_runner, run_log, tmp_path):
    work_dir = tmp_path / 'run'
    make_runner('resnet', hook(begin_iter=1), work_dir=work_dir,
                train_cfg=dict(max_epochs=1)).train()
    second = make_runner('resnet', hook(begin_iter=1), work_dir=work_dir,
                         resume=True)
    second.train()
    assert second.record.phases == ['quantize'] * 2
    assert "phase 'reshape'" not in run_log(second)


def test_reshape_phase_clips_the_stored_weights_and_rounds_nothing(
        make_runner):
    runner = make_runner('resnet', hook(begin_epoch=1),
                         train_cfg=dict(max_epochs=1))
    runner.train()
    layer = runner.model.backbone.layer2[0].conv2
    assert layer.weight_quantizer.clip.min() > 0
    assert layer.quantized_weight() is layer.weight
    clip = layer.weight_quantizer.clip.repeat_interleave(4)[:, None]
    magnitudes = layer.weight.detach().abs().flatten(1)
    assert (magnitudes <= clip).all() and (magnitudes == clip).any()


# -- batch normalization -----------------------------------------------------


class KeepStatistics(Hook):
    """Running means of one layer before each iteration and at the end."""
    priority = 'LOWEST'

    def before_train(self, runner):
        self.means = []
        self.norm = runner.model.backbone.layer1[0].bn1

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.means.append(self.norm.running_mean.clone())


@pytest.mark.parametrize('begin_iter', [0, 2])
def test_frozen_statistics_are_recalibrated_as_rounding_begins_and_later(
        begin_iter, make_runner, run_log):
    keep = KeepStatistics()
    runner = make_runner(
        'resnet', hook(begin_iter=begin_iter, bn_batches=2),
        **{'model.backbone.norm_eval': True})
    runner.register_hook(keep)
    runner.train()
    last = keep.norm.running_mean
    assert not last.equal(keep.means[-1])
    changed = [bool(mean.any()) for mean in keep.means]  # zeros at first
    assert changed == [step >= begin_iter for step in range(4)]
    # Anew where a checkpoint is saved, after each epoch of 2 iterations.
    assert keep.means[0].equal(keep.means[1])
    assert keep.means[2].equal(keep.means[3])
    assert not keep.means[1].equal(keep.means[2])
    saved = checkpoint(runner, 'epoch_2.pth')['state_dict']
    assert saved['backbone.layer1.0.bn1.running_mean'].equal(last)
    log = run_log(runner)
    assert log.count('batch normalization recalibrated with 2 batches') == (
        3 if begin_iter == 0 else 2)
    assert 'keep the statistics of the float model' not in log


def test_frozen_statistics_that_nothing_recalibrates_are_warned_of(
        make_runner, run_log):
    runner = make_runner('resnet', hook(),
                         **{'model.backbone.norm_eval': True})
    runner.train()
    log = run_log(runner)
    assert ' normalization layers (backbone.bn1, ...) keep the statistics of' \
        ' the float model' in log
    assert 'else bn_batches of the hook' in log


def test_recalibration_does_not_repeat_in_a_resumed_run(
        make_runner, run_log, tmp_path):
    work_dir = tmp_path / 'run'
    make_runner('resnet', hook(), work_dir=work_dir,
                train_cfg=dict(max_epochs=1)).train()
    second = make_runner('resnet', hook(bn_batches=1), work_dir=work_dir,
                         resume=True)
    second.train()
    assert run_log(second).count('recalibrated') == 1


# -- log ---------------------------------------------------------------------


@pytest.mark.parametrize('name', ['resnet', 'pspnet', 'faster_rcnn'])
def test_figures_reach_the_log_line_and_the_visualizer(
        name, make_runner, run_log):
    runner = make_runner(name, hook())
    runner.train()
    lines = [line for line in run_log(runner).splitlines()
             if '(train)' in line and 'loss:' in line]
    assert len(lines) == 4
    for scalar in SCALARS:
        assert f'{scalar}: ' in lines[-1]
    for row in scalars(runner)[1:]:  # the first has no threshold to clip at
        assert row.keys() >= set(SCALARS)
        assert 0 < row['gdrq_ql'] < .5
        assert row['gdrq_weight_clip'] > 0 and row['gdrq_act_clip'] > 0
        assert 0 <= row['gdrq_clipped'] < .5
        assert row['gdrq_phase'] == 1


def test_figures_are_computed_for_logged_iterations_only(make_runner):
    runner = make_runner('resnet', hook(),
                         default_hooks=dict(logger=dict(interval=2)))
    runner.train()
    rows = [row for row in scalars(runner) if 'gdrq_ql' in row]
    assert [row['step'] for row in rows] == [2, 4]
    assert get_state(runner.model).clipped == []


def test_report_of_all_layers_is_in_the_log(make_runner, run_log):
    runner = make_runner('faster_rcnn', hook(dict(
        QUANTIZATION, residual=dict(outputs=['backbone.layer1.0.bn2']))))
    runner.train()
    log = run_log(runner)
    for name in ('backbone.conv1', 'neck.fpn_convs.0.conv',
                 'rpn_head.rpn_conv', 'roi_head.bbox_head.fc_cls'):
        assert f'\n{name} ' in log
    assert "layers with 100.0% of all layers' weights are quantized" in log
    assert 'cpu kernels on cpu (fused kernels)' in log
    # What only data tell follows the first iteration.
    line = next(line for line in log.splitlines() if 'signed inputs' in line)
    signed, _, shared = line.partition('layers that read the same tensor: ')
    assert 'backbone.conv1' in signed and 'layer1.0.conv2' not in signed
    assert 'output_quantizer' not in signed  # it is of no input
    assert 'rpn_head.rpn_cls = rpn_head.rpn_reg' in shared


def test_inputs_behind_silu_are_logged_with_zero_points(make_runner,
                                                        run_log):
    runner = make_runner('resnet', hook(QUANTIZATION))
    for module in runner.model.modules():
        if hasattr(module, 'relu'):
            module.relu = nn.SiLU()
    runner.train()
    log = run_log(runner)
    line = next(line for line in log.splitlines() if 'signed inputs' in line)
    signed, _, shifted = line.partition('with a zero point: ')
    assert 'backbone.conv1' in signed and 'layer1' not in signed
    assert 'backbone.layer1.0.conv2' in shifted


def test_outputs_whose_module_is_bypassed_are_warned_of(make_runner, run_log):
    """mmseg calls the forward of its decode heads, not the heads."""
    runner = make_runner('pspnet', hook(dict(QUANTIZATION, residual=dict(
        outputs=['decode_head', 'decode_head.conv_seg']))))
    runner.train()
    assert 'residual.outputs names modules that were not called in the ' \
        'first iteration: decode_head. ' in run_log(runner)


# -- evaluation --------------------------------------------------------------


def test_test_of_a_float_checkpoint_warns_of_missing_thresholds(
        make_runner, build_model, run_log, tmp_path):
    path = str(tmp_path / 'float.pth')
    save_checkpoint(dict(state_dict=build_model('resnet').state_dict()), path)
    runner = make_runner('resnet', hook(), load_from=path)
    runner.test()
    assert 'no activation threshold is set yet' in run_log(runner)


def test_test_of_a_trained_checkpoint_does_not_warn(
        make_runner, run_log, tmp_path):
    trained = make_runner('resnet', hook(), work_dir=tmp_path / 'train')
    trained.train()
    runner = make_runner('resnet', hook(),
                         load_from=f'{trained.work_dir}/epoch_2.pth')
    runner.test()
    assert 'no activation threshold' not in run_log(runner)
    for key, value in trained.model.state_dict().items():
        assert torch.equal(runner.model.state_dict()[key], value), key


def test_test_with_other_bits_than_the_checkpoint_is_refused(
        make_runner, tmp_path):
    trained = make_runner('resnet', hook(), work_dir=tmp_path / 'train')
    trained.train()
    runner = make_runner(
        'resnet', hook(dict(weight=dict(bits=2), activation=dict(bits=4))),
        load_from=f'{trained.work_dir}/epoch_2.pth')
    with pytest.raises(RuntimeError, match='(?s)another quantization.*'
                       '4 bits.*2 bits.*before 0.2.0'):
        runner.test()


@pytest.mark.parametrize('form', ['hook', 'model'])
def test_model_inside_test_time_augmentation_is_found(
        form, make_runner, load_config, tmp_path):
    cfg = load_config('pspnet')
    if form == 'model':
        as_quantized(cfg)
    one = hook() if form == 'hook' else dict(type='GDRQHook')
    trained = make_runner(cfg, one, work_dir=tmp_path / 'train')
    trained.train()
    cfg = load_config('pspnet')
    if form == 'model':
        as_quantized(cfg)
    load, resize, annotations, pack = \
        cfg.test_dataloader.dataset.pipeline
    cfg.test_dataloader.dataset.pipeline = [load, dict(
        type='TestTimeAug', transforms=[
            [resize],
            [dict(type='RandomFlip', prob=0.),
             dict(type='RandomFlip', prob=1.)],
            [annotations], [pack]])]
    cfg.model = dict(type='SegTTAModel', module=cfg.model)
    runner = make_runner(cfg, one,
                         load_from=f'{trained.work_dir}/iter_4.pth')
    runner.test()
    state = get_state(runner.model.module)
    assert state is not None and any_threshold(state)


def test_a_rule_about_what_a_relu_has_quantized_is_warned_of(
        make_runner, run_log):
    quantization = dict(
        weight=dict(bits=4), activation=dict(bits=4, site='relu'),
        rules=[dict(match='backbone.layer1.0.conv2',
                    activation=dict(bits=8))])
    runner = make_runner('resnet', hook(quantization),
                         train_cfg=dict(max_epochs=1))
    runner.train()
    assert ("fields of rules 'backbone.layer1.0.conv2' "
            '(backbone.layer1.0.conv2) do nothing' in run_log(runner))


def test_a_flexible_runner_resumes_with_learned_parameters(
        load_config, tmp_path):
    from mmengine.runner import FlexibleRunner
    cfg = load_config('resnet')

    def runner(epochs, **kwargs):
        return FlexibleRunner(
            model=dict(cfg.model, type='QuantizedModel',
                       architecture=cfg.model.type, quantization=dict(
                           activation=dict(bits=4, type='LSQ'))),
            work_dir=str(tmp_path), train_dataloader=cfg.train_dataloader,
            strategy=dict(type='SingleDeviceStrategy'),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=.01)),
            default_scope=cfg.default_scope,
            experiment_name=f'flexible_{epochs}',
            custom_hooks=[dict(type='GDRQHook', **kwargs)],
            resume=epochs > 1)

    first, second = runner(1), runner(2)
    first.train()
    second.train()
    assert second.epoch == 2
    with pytest.raises(ValueError, match=(
            r'lr_mult is 0.1, allowed: 1 with a FlexibleRunner')):
        runner(3, lr_mult=.1).train()


def test_a_flexible_runner_is_refused_with_the_way_out(load_config, tmp_path):
    from mmengine.runner import FlexibleRunner
    cfg = load_config('resnet')
    runner = FlexibleRunner(
        model=cfg.model, work_dir=str(tmp_path),
        train_dataloader=cfg.train_dataloader, train_cfg=cfg.train_cfg,
        optim_wrapper=cfg.optim_wrapper, default_scope=cfg.default_scope,
        custom_hooks=[dict(type='GDRQHook', quantization=QUANTIZATION)])
    with pytest.raises(ValueError, match='FlexibleRunner.*QuantizedModel'):
        runner.train()
