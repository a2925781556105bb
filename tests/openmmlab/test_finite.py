"""NaN losses and weights are warned of once, with step and layer."""
import pytest
import torch
from mmengine.hooks import Hook

QUANTIZATION = dict(weight=dict(bits=4), activation=dict(bits=4))
HOOK = dict(type='GDRQHook', quantization=QUANTIZATION)


class Break(Hook):
    """Writes NaN into a weight before or after an iteration."""
    priority = 'HIGH'

    def __init__(self, before=None, after=None):
        self.before, self.after = before, after

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.before:
            self.break_weight(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        if runner.iter == self.after:
            self.break_weight(runner)

    @torch.no_grad()
    def break_weight(self, runner):
        runner.model.backbone.layer4[2].conv3.weight[0, 0] = float('nan')


def warnings_of(runner, run_log):
    return [line for line in run_log(runner).splitlines()
            if 'GDRQHook' in line and 'cannot be published' in line]


def test_first_step_and_layer_are_named_once(make_runner, run_log):
    runner = make_runner('resnet', HOOK,
                         default_hooks=dict(logger=dict(interval=2)))
    runner.register_hook(Break(before=1))
    runner.train()
    line, = warnings_of(runner, run_log)
    assert 'the loss is not finite since iteration 1' in line
    # The loss spreads it to all weights: the first one stands for them.
    assert 'values at iteration 1 in backbone.conv1.weight and ' in line


def test_weights_are_looked_at_before_they_are_saved(make_runner, run_log):
    """The step that breaks them may be the last one."""
    runner = make_runner('resnet', HOOK, train_cfg=dict(max_epochs=1))
    runner.register_hook(Break(after=1))
    runner.train()
    line, = warnings_of(runner, run_log)
    assert 'the loss' not in line
    assert 'conv3.weight' in line


@pytest.mark.parametrize('breaks', [False, True])
def test_what_was_infinite_before_is_not_told(breaks, make_runner, run_log):
    """The mask of an attention, which is added to its scores."""
    runner = make_runner('resnet', HOOK, train_cfg=dict(max_epochs=1))
    runner.model.register_buffer('mask', torch.tensor([0., -float('inf')]))
    if breaks:
        runner.register_hook(Break(after=1))
    runner.train()
    lines = warnings_of(runner, run_log)
    assert len(lines) == breaks
    assert all('conv3.weight' in line and 'mask' not in line
               for line in lines)


@pytest.mark.parametrize('saves', [
    dict(interval=1), dict(interval=-1, save_last=False, save_best='auto')])
def test_a_quantized_model_without_the_hook_is_looked_at(
        saves, make_runner, load_config, run_log):
    cfg = load_config('resnet')
    cfg.model.update(type='QuantizedModel', architecture=cfg.model.type,
                     quantization=QUANTIZATION)
    cfg.update(val_dataloader=cfg.test_dataloader, val_cfg={},
               val_evaluator=cfg.test_evaluator)
    runner = make_runner(cfg, **{'default_hooks.checkpoint': dict(
        type='CheckpointHook', **saves)})
    runner.register_hook(Break(after=0))
    runner.train()
    line, = [line for line in run_log(runner).splitlines()
             if 'cannot be published' in line]
    assert ('CheckpointWatchHook: NaN or infinite values at iteration 2 in '
            'back' in line)


def test_finite_runs_are_not_warned_of(make_runner, run_log):
    runner = make_runner('resnet', HOOK)
    runner.train()
    assert not warnings_of(runner, run_log)
