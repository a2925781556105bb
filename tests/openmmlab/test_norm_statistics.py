"""Every checkpoint has the normalization statistics of its weights."""
import copy
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from gdrq_mm import update_bn_stats
from gdrq_mm.openmmlab.calibrate import training_forwards
from gdrq_mm.openmmlab.publish import inference_config
from gdrq_mm.openmmlab.scopes import build_model

QUANTIZATION = dict(weight=dict(bits=4), activation=dict(bits=4))


def hook(**kwargs):
    return dict(type='GDRQHook', quantization=QUANTIZATION, bn_batches=2,
                **kwargs)


def with_validation(cfg, by_epoch=True):
    cfg.val_dataloader = copy.deepcopy(cfg.test_dataloader)
    cfg.val_dataloader.dataset.indices = 2
    cfg.val_evaluator = cfg.test_evaluator
    cfg.val_cfg = dict()
    cfg.train_dataloader.sampler.shuffle = False  # batches are the same ones
    cfg.train_cfg = dict(by_epoch=by_epoch, val_interval=1)
    cfg.train_cfg['max_epochs' if by_epoch else 'max_iters'] = 3
    cfg.merge_from_dict({'default_hooks.checkpoint': dict(
        type='CheckpointHook', interval=2, by_epoch=by_epoch,
        save_best='accuracy/top1', rule='greater')})
    return cfg


def statistics(state_dict):
    return {key: value for key, value in state_dict.items()
            if key.endswith(('running_mean', 'running_var'))}


def fitted(runner, state_dict):
    """Statistics that fit the weights of a state dict."""
    model = build_model(inference_config(runner.cfg))
    model.load_state_dict(state_dict)
    loader = Runner.build_dataloader(runner.cfg.train_dataloader, seed=0)
    update_bn_stats(model, training_forwards(model, loader, 2))
    return statistics(model.state_dict())


class KeepEvaluated(Hook):
    """Statistics and weights that each validation evaluates."""
    priority = 'LOWEST'

    def __init__(self):
        self.seen = []

    def after_val_iter(self, runner, batch_idx, data_batch=None,
                       outputs=None):
        self.seen.append(copy.deepcopy(runner.model.state_dict()))


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('ema', [
    None, dict(type='EMAHook', momentum=.3),
    dict(type='EMAHook', momentum=.3, update_buffers=True)],
    ids=['plain', 'averaged', 'averaged buffers'])
def test_statistics_of_every_checkpoint_fit_its_weights(
        ema, by_epoch, make_runner, load_config):
    cfg = with_validation(load_config('resnet'), by_epoch)
    runner = make_runner(cfg, hook(), *([ema] if ema else []))
    evaluated = KeepEvaluated()
    runner.register_hook(evaluated)
    runner.train()
    files = [f'{"epoch" if by_epoch else "iter"}_{number}.pth'
             for number in (2, 3)]
    files += [path.name for path in
              Path(runner.work_dir).glob('best_*')]
    assert len(files) == 3
    for name in files:
        saved = torch.load(f'{runner.work_dir}/{name}',
                           weights_only=True)['state_dict']
        for key, value in fitted(runner, saved).items():
            torch.testing.assert_close(saved[key], value)
        # What was evaluated is what is saved.
        assert any(all(torch.equal(each[key], value)
                       for key, value in saved.items())
                   for each in evaluated.seen), name


@pytest.mark.parametrize('evaluate', [
    dict(evaluate_on_ema=False, evaluate_on_origin=True),
    dict(evaluate_on_ema=True, evaluate_on_origin=True)],
    ids=['origin', 'both'])
def test_each_of_two_models_is_evaluated_with_its_own_statistics(
        evaluate, make_runner, load_config, run_log):
    """mmpretrain's EMAHook evaluates the model that is trained as well."""
    cfg = with_validation(load_config('resnet'))
    runner = make_runner(cfg, hook(), dict(
        type='mmpretrain.EMAHook', momentum=.3, **evaluate))
    evaluated = KeepEvaluated()
    runner.register_hook(evaluated)
    runner.train()
    assert len(evaluated.seen) == 3 * sum(evaluate.values())
    assert ('published is their average' in run_log(runner)) is not \
        evaluate['evaluate_on_ema']
    for seen in evaluated.seen:
        for key, value in fitted(runner, seen).items():
            torch.testing.assert_close(seen[key], value)


def as_quantized_model(cfg):
    cfg.model = dict(cfg.model, type='QuantizedModel',
                     architecture=cfg.model.type, quantization=QUANTIZATION)
    return []


@pytest.mark.parametrize('kind', ['EMAHook', 'mmpretrain.EMAHook'])
@pytest.mark.parametrize('hooks_of', [
    lambda cfg: [hook()],
    lambda cfg: [dict(type='GDRQHook', quantization=QUANTIZATION)],
    as_quantized_model], ids=['as trained', 'without bn_batches', 'no hook'])
def test_a_checkpoint_is_tested_with_the_statistics_it_was_validated_with(
        hooks_of, kind, make_runner, load_config):
    ema = dict(type=kind, momentum=.3)
    trained = make_runner(with_validation(load_config('resnet')), hook(), ema)
    validated = KeepEvaluated()
    trained.register_hook(validated)
    trained.train()
    for evaluate in (lambda runner: runner.test(), lambda runner:
                     runner.val()):
        cfg = with_validation(load_config('resnet'))
        del cfg.default_hooks.checkpoint.save_best  # mmengine has none here
        runner = make_runner(
            cfg, *hooks_of(cfg), ema,
            load_from=f'{trained.work_dir}/epoch_3.pth')
        tested = KeepEvaluated()
        tested.after_test_iter = tested.after_val_iter
        runner.register_hook(tested)
        evaluate(runner)
        expected = statistics(validated.seen[-1])
        for key, value in statistics(tested.seen[0]).items():
            torch.testing.assert_close(value, expected[key], msg=key)


def test_resumed_run_equals_an_uninterrupted_one(
        make_runner, load_config, tmp_path):
    states = []
    for parts in ((3, ), (2, 3)):
        for epochs in parts:
            cfg = with_validation(load_config('resnet'))
            cfg.model.backbone.norm_eval = True
            cfg.train_cfg.max_epochs = epochs
            runner = make_runner(
                cfg, hook(), dict(type='EMAHook', momentum=.3),
                work_dir=tmp_path / str(parts), resume=epochs != parts[0])
            runner.train()
        states.append(runner.model.state_dict())
    one, other = states
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_checkpoint_that_nothing_plans_is_warned_of(make_runner, run_log):
    class Save(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, batch_idx, data_batch=None,
                             outputs=None):
            if runner.iter == 0:
                runner.save_checkpoint(runner.work_dir, 'own.pth')

    runner = make_runner('resnet', hook())
    runner.register_hook(Save())
    runner.train()
    assert run_log(runner).count('no CheckpointHook plans') == 1


def test_averaged_weights_that_are_not_recalibrated_are_warned_of(
        make_runner, run_log):
    warning = 'checkpoints of this run have weights averaged by EMAHook'
    for batches, ema, expected in ((0, True, 1), (2, True, 0), (0, False, 0)):
        runner = make_runner('resnet', dict(hook(), bn_batches=batches), *(
            [dict(type='EMAHook')] if ema else []))
        runner.train()
        assert run_log(runner).count(warning) == expected


def test_the_data_that_a_hook_has_switched_to_are_used(
        make_runner, load_config):
    """mmdet's PipelineSwitchHook changes the data set of the run."""
    cfg = with_validation(load_config('resnet'))
    switched = copy.deepcopy(cfg.train_dataloader.dataset.pipeline)
    switched.insert(1, dict(type='Resize', scale=8))
    runner = make_runner(cfg, hook(), dict(
        type='mmdet.PipelineSwitchHook', switch_epoch=1,
        switch_pipeline=switched))
    runner.train()
    dataset = runner.train_dataloader.dataset
    saved = torch.load(f'{runner.work_dir}/epoch_3.pth',
                       weights_only=True)['state_dict']
    model = build_model(inference_config(runner.cfg))
    model.load_state_dict(saved)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=cfg.train_dataloader.batch_size,
        collate_fn=runner.train_dataloader.collate_fn)
    assert next(iter(loader))['inputs'][0].shape[-1] == 8
    update_bn_stats(model, training_forwards(model, loader, 2))
    for key, value in statistics(model.state_dict()).items():
        torch.testing.assert_close(saved[key], value)


def test_a_model_without_such_statistics_is_told_once(make_runner, run_log):
    runner = make_runner(
        'resnet', hook(), model=dict(backbone=dict(norm_cfg=dict(
            type='GN', num_groups=1))))
    runner.train()
    log = run_log(runner)
    assert log.count('bn_batches acts on nothing') == 1
    assert 'recalibrated' not in log
