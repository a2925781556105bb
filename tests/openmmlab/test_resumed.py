"""A resumed run says what differs, and refuses what cannot go on."""
import pytest
import torch
from mmengine.runner import FlexibleRunner

from gdrq_mm.checkpoint import NAME, CheckpointError


def hook(quantization=None, **kwargs):
    activation = dict(bits=4)
    return dict(type='GDRQHook', quantization=quantization or dict(
        weight=dict(bits=4), activation=activation), **kwargs)


@pytest.fixture
def first(make_runner, tmp_path):
    """A run of one epoch, and the options to resume it with."""

    def run(*hooks):
        work_dir = tmp_path / 'run'
        make_runner('resnet', *hooks, work_dir=work_dir,
                    train_cfg=dict(max_epochs=1)).train()
        return dict(work_dir=work_dir, resume=True)

    return run


@pytest.fixture
def quantized_config(load_config):
    """A QuantizedModel with the quantization of ``hook()``."""
    cfg = load_config('resnet')
    cfg.merge_from_dict(dict(model=dict(
        type='QuantizedModel', architecture=cfg.model.type,
        quantization=hook()['quantization'])))
    return cfg


@pytest.fixture
def make_flexible(load_config, tmp_path):
    """Function that builds a FlexibleRunner from the fields of a model."""

    def make(epochs, *hooks, **model):
        cfg = load_config('resnet')
        if model:
            cfg.model.update(model, architecture=cfg.model.type)
        return FlexibleRunner(
            model=cfg.model, work_dir=str(tmp_path / 'run'),
            train_dataloader=cfg.train_dataloader,
            strategy=dict(type='SingleDeviceStrategy'),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=.01)),
            default_scope=cfg.default_scope, custom_hooks=list(hooks),
            experiment_name=f'{tmp_path.name}_{epochs}', resume=epochs > 1)

    return make


@pytest.mark.parametrize('phase, shown', [
    (torch.tensor(7), r'tensor\(7\)'), (torch.tensor(-1), r'tensor\(-1\)'),
    (torch.tensor([1, 1]), r'of shape \(2,\)'), ('text', "'text'")])
def test_a_phase_that_is_none_is_refused(phase, shown, first, make_runner):
    options = first(hook())
    change_checkpoint(options, lambda content: content['state_dict'].update(
        {f'{NAME}.phase_index': phase}))
    with pytest.raises(CheckpointError, match=(
            rf'phase_index\) is {shown}, allowed: .* 0 .*or 1')):
        make_runner('resnet', hook(), **options).train()


@pytest.mark.parametrize('optimizer', [
    'text', dict(param_groups='text'), dict(param_groups=[dict(lr=1.)])])
def test_an_optimizer_that_is_none_is_refused(optimizer, first, make_runner):
    options = first(hook())
    change_checkpoint(options, lambda content: content.update(
        optimizer=optimizer))
    with pytest.raises(CheckpointError, match=(
            'its optimizer is .*, allowed: .*param_groups.* as load_from')):
        make_runner('resnet', hook(), **options).train()


def change_checkpoint(options, change):
    path = options['work_dir'] / 'epoch_1.pth'
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


def test_other_settings_of_a_resumed_run_are_in_the_log(
        first, make_runner, run_log):
    options = first(hook(dict(weight=dict(bits=4), activation=dict(
        bits=4, threshold='mean'))))
    runner = make_runner('resnet', hook(dict(
        weight=dict(bits=4, k=2.5), activation=dict(
            bits=4, threshold='mean', k=6., lr=.1)),
        bn_batches=1), **options)
    runner.train()
    line = next(line for line in run_log(runner).splitlines()
                if 'the resumed run has other settings' in line)
    for change in ('weight.k: None -> 2.5', 'activation.k: None -> 6.0',
                   'activation.lr: 0.01 -> 0.1', 'bn_batches: 0 -> 1'):
        assert change in line
    assert 'begin_iter' not in line


def test_another_rate_of_step_sizes_is_told_not_to_act(
        first, make_runner, run_log):
    learned = dict(activation=dict(bits=4, type='LSQ'))
    runner = make_runner('resnet', hook(learned, lr_mult=.1),
                         **first(hook(learned)))
    runner.train()
    assert ('lr_mult: 1.0 -> 0.1. Another lr_mult does not act'
            in run_log(runner))
    ordinary, learned = runner.optim_wrapper.optimizer.param_groups
    assert learned['lr'] == ordinary['lr']


def test_equal_settings_are_not_mentioned(first, make_runner, run_log):
    runner = make_runner('resnet', hook(), **first(hook()))
    runner.train()
    log = run_log(runner)
    assert 'other settings' not in log
    assert "phase 'quantize' from iteration 2" in log


def test_run_of_the_hook_resumed_as_quantized_model_is_refused(
        first, make_runner, quantized_config):
    options = first(hook())
    runner = make_runner(quantized_config, dict(type='GDRQHook'), **options)
    with pytest.raises(ValueError, match=(
            'optimizer of the checkpoint holds .* this run .* as load_from')):
        runner.train()


def test_run_of_the_hook_resumed_without_it_is_refused(
        first, make_runner, quantized_config):
    runner = make_runner(quantized_config, **first(hook()))
    with pytest.raises(ValueError, match=(
            'optimizer of the checkpoint holds .* this run .* as load_from')):
        runner.train()


def test_other_groups_of_as_many_parameters_are_refused(
        first, make_runner, quantized_config):
    """The hook puts what quantizers learn into a group of its own."""
    learned = dict(weight=dict(bits=4), activation=dict(bits=4, type='LSQ'))
    quantized_config.model.quantization = learned
    runner = make_runner(
        quantized_config, **first(hook(learned)))
    with pytest.raises(ValueError, match=(
            r'checkpoint holds \d+ parameters in 2 groups \(.* this run \d+ '
            'parameters: .* as load_from')):
        runner.train()


def test_other_settings_without_the_hook_are_in_the_log(
        make_runner, quantized_config, tmp_path, run_log):
    options = dict(work_dir=tmp_path / 'run')
    make_runner(quantized_config, train_cfg=dict(max_epochs=1),
                **options).train()
    quantized_config.model.quantization = dict(
        weight=dict(bits=4, k=2.5), activation=dict(bits=4))
    for hooks in ([], [dict(type='GDRQHook')]):
        runner = make_runner(quantized_config, *hooks, resume=True, **options)
        runner.train()
        assert ('the resumed run has other settings: weight.k: None -> 2.5'
                in run_log(runner))


def test_a_hook_that_is_registered_late_says_it_alone(
        make_runner, quantized_config, tmp_path, run_log):
    options = dict(work_dir=tmp_path / 'run')
    make_runner(quantized_config, dict(type='GDRQHook', begin_epoch=1),
                train_cfg=dict(max_epochs=1), **options).train()
    runner = make_runner(quantized_config, resume=True, **options)
    runner.register_hook(dict(type='GDRQHook', begin_epoch=1))
    runner.train()
    assert 'other settings' not in run_log(runner)


def test_run_without_the_hook_resumed_with_it(
        make_runner, quantized_config, tmp_path):
    """One that converts is refused; one that adds phases goes on."""
    options = dict(work_dir=tmp_path / 'run')
    make_runner(quantized_config, train_cfg=dict(max_epochs=1),
                **options).train()
    options.update(resume=True)
    with pytest.raises(ValueError, match=(
            'optimizer of the checkpoint holds .* this run .* as load_from')):
        make_runner('resnet', hook(), **options).train()
    runner = make_runner(quantized_config, dict(type='GDRQHook'),
                         train_cfg=dict(max_epochs=2), **options)
    runner.train()
    assert runner.epoch == 2
    # And back again: the optimizer is the same.
    runner = make_runner(quantized_config, train_cfg=dict(max_epochs=3),
                         **options)
    runner.train()
    assert runner.epoch == 3


def test_other_errors_of_a_resume_are_as_they_were(first, make_runner):
    options = first()
    runner = make_runner('resnet', optim_wrapper=dict(
        paramwise_cfg=dict(bias_decay_mult=0.)), **options)
    with pytest.raises(ValueError, match='parameter group') as info:
        runner.train()
    assert 'QuantizedModel' not in str(info.value)


def test_other_settings_in_a_flexible_runner_are_in_the_log(
        make_flexible, run_log):
    make_flexible(1, dict(type='GDRQHook'), type='QuantizedModel',
                  quantization=hook()['quantization']).train()
    runner = make_flexible(
        2, dict(type='GDRQHook', begin_epoch=1), type='QuantizedModel',
        quantization=dict(weight=dict(bits=4, k=2.5),
                          activation=dict(bits=4)))
    runner.train()
    assert ('the resumed run has other settings: begin_epoch: 0 -> 1; '
            'weight.k: None -> 2.5' in run_log(runner))


@pytest.mark.parametrize('hooks', [[], [dict(type='GDRQHook')]])
def test_float_run_of_a_flexible_runner_resumed_as_quantized_model(
        hooks, make_flexible):
    make_flexible(1).train()
    runner = make_flexible(2, *hooks, type='QuantizedModel',
                           quantization=hook()['quantization'])
    with pytest.raises(ValueError, match=(
            'optimizer of the checkpoint holds .* as load_from')):
        runner.train()


def test_a_run_does_not_go_on_as_the_float_one_of_load_from(
        first, make_runner, tmp_path):
    """As mmseg's train.py has it, which keeps load_from at --resume."""
    make_runner('resnet', work_dir=tmp_path / 'float').train()
    options = first(hook())
    runner = make_runner(
        'resnet', hook(), load_from=str(tmp_path / 'float/epoch_2.pth'),
        **options)
    with pytest.raises(ValueError, match=(
            r"load_from='.*float/epoch_2.pth', a float model, at its epoch.*"
            'add --cfg-options load_from=None')):
        runner.train()
    quantized = str(options['work_dir'] / 'epoch_1.pth')
    make_runner('resnet', hook(), load_from=quantized, **options).train()


@pytest.mark.parametrize('kind', ['hook', 'model'])
def test_a_resumed_run_without_a_checkpoint_says_so(
        kind, make_runner, quantized_config, run_log):
    """The resume of mmdet and mmpretrain drops load_from."""
    options = dict(resume=True, train_cfg=dict(max_epochs=1))
    runner = make_runner('resnet', hook(), **options) if kind == 'hook' \
        else make_runner(quantized_config, **options)
    runner.train()
    assert 'has no checkpoint: this training begins with no trained weights' \
        in run_log(runner)


@pytest.mark.parametrize('quantization', [
    dict(weight=dict(bits=4, type='LSQ'), activation=dict(bits=4)),
    dict(weight=dict(bits=4), activation=dict(bits=4, threshold='learned'))])
def test_another_quantization_is_said_to_be_one(quantization, first,
                                                make_runner, run_log):
    """Not that the optimizer holds less, which follows from it."""
    runner = make_runner('resnet', hook(quantization), **first(hook()))
    with pytest.raises(CheckpointError, match=(
            'trained with another quantization(.|\n)*float_weights')):
        runner.train()
    assert 'the resumed run has other settings' in run_log(runner)


def test_other_groups_are_named_by_their_cause_and_not_all(first,
                                                           make_runner):
    options = first(hook())
    runner = make_runner('resnet', hook(), optim_wrapper=dict(
        paramwise_cfg=dict(norm_decay_mult=0.)), **options)
    with pytest.raises(ValueError, match='the paramwise_cfg of before') as \
            info:
        runner.train()
    assert len(str(info.value)) < 600


def test_going_on_with_a_float_run_is_a_warning(first, make_runner, run_log):
    runner = make_runner('resnet', hook(), **first())
    runner.train()
    assert 'holds a float run: this one goes on with it' in run_log(runner)
    runner = make_runner('resnet', hook(), train_cfg=dict(max_epochs=3),
                         work_dir=runner.work_dir, resume=True)
    runner.train()
    assert 'holds a float run' not in run_log(runner)


def test_a_float_run_is_no_start_of_one_that_learns(first, make_runner):
    learned = dict(weight=dict(bits=4), activation=dict(bits=4, type='LSQ'))
    runner = make_runner('resnet', hook(learned), **first())
    with pytest.raises(ValueError, match=(
            'checkpoint is of a float run.* as load_from, without resume')):
        runner.train()
