"""Step sizes that quantizers learn, in runs of mmengine."""
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS

from gdrq_mm.training import get_state, learned_parameters

LSQ = dict(weight=dict(type='LSQ', bits=4), activation=dict(type='LSQ',
                                                            bits=4))
HOOK = dict(type='GDRQHook', quantization=LSQ)
WORKER = Path(__file__).parents[1] / 'integration' / 'ddp_worker.py'


def learned_of(runner):
    return learned_parameters(get_state(runner.model))


def test_the_hook_hands_them_to_the_optimizer(make_runner):
    runner = make_runner('resnet', dict(HOOK, lr_mult=.5),
                         train_cfg=dict(max_epochs=1))
    runner.train()
    learned = learned_of(runner)
    assert len(learned) == 2 * 54
    ordinary, ours = runner.optim_wrapper.optimizer.param_groups
    assert {id(each) for each in ours['params']} == {
        id(each) for each in learned.values()}
    assert not {id(each) for each in ordinary['params']} & {
        id(each) for each in ours['params']}
    assert ours['weight_decay'] == 0 and ordinary['weight_decay'] == 1e-4
    assert ours['momentum'] == ordinary['momentum'] == .9
    # The schedule moves both, by the same factor.
    assert ours['initial_lr'] == pytest.approx(.5 * ordinary['initial_lr'])
    assert ours['lr'] == pytest.approx(.5 * ordinary['lr'])
    assert ordinary['lr'] > .1 * ordinary['initial_lr']
    # All of them were stepped (those of inputs from the second step on).
    state = runner.optim_wrapper.optimizer.state
    assert all('momentum_buffer' in state[each] for each in learned.values())


def test_a_schedule_that_starts_again_knows_them(make_runner):
    """CosineAnnealingLR goes back to the base values of all groups."""
    runner = make_runner(
        'resnet', dict(HOOK, lr_mult=.5), train_cfg=dict(max_epochs=2),
        param_scheduler=[dict(type='CosineAnnealingLR', T_max=1,
                              by_epoch=False)])
    runner.train()
    ordinary, ours = runner.optim_wrapper.optimizer.param_groups
    for scheduler in runner.param_schedulers:
        assert scheduler.base_values == [.01, .005]
    assert ours['lr'] == pytest.approx(.5 * ordinary['lr'])


def test_a_model_that_was_converted_before_gets_the_same_groups(
        make_runner, tmp_path):
    model = dict(type='QuantizedModel', architecture='ImageClassifier',
                 quantization=LSQ)
    runs = []
    for name, options, hook in (('hook', {}, HOOK),
                                ('model', {'model': model},
                                 dict(type='GDRQHook'))):
        runner = make_runner('resnet', hook, train_cfg=dict(max_epochs=1),
                             work_dir=tmp_path / name, **options)
        runner.train()
        runs.append(runner)
    hook, model = runs
    for ours, theirs in zip(hook.optim_wrapper.optimizer.param_groups,
                            model.optim_wrapper.optimizer.param_groups):
        assert len(ours['params']) == len(theirs['params'])
        assert ours['weight_decay'] == theirs['weight_decay']
    assert hook.record.losses == model.record.losses


def test_a_resumed_run_equals_the_uninterrupted_one(make_runner, tmp_path):
    whole = make_runner('resnet', HOOK, work_dir=tmp_path / 'whole')
    whole.train()
    first = make_runner('resnet', HOOK, work_dir=tmp_path / 'halves',
                        train_cfg=dict(max_epochs=1))
    first.train()
    second = make_runner('resnet', HOOK, work_dir=tmp_path / 'halves',
                         resume=True)
    second.train()
    assert whole.record.losses == first.record.losses + second.record.losses
    for name, value in learned_of(whole).items():
        assert torch.equal(value, learned_of(second)[name]), name


def test_two_processes_learn_the_same_steps(load_config, run_processes,
                                            tmp_path):
    cfg = load_config('resnet')
    cfg.custom_hooks = [HOOK]
    cfg.train_dataloader.batch_size = 2
    for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
        cfg.pop(key)
    cfg.dump(tmp_path / 'config.py')
    run_processes(*([WORKER, tmp_path / 'config.py', rank, 2, tmp_path]
                    for rank in range(2)))
    ours, theirs = (torch.load(tmp_path / f'{rank}_of_2.pth',
                               weights_only=True)['state_dict']
                    for rank in range(2))
    steps = [key for key in ours if key.endswith('.step.ratio')]
    assert len(steps) == 2 * 54
    for key in ours:
        if 'running_' not in key and 'num_batches' not in key:
            assert torch.equal(ours[key], theirs[key]), key


PARAMWISE = dict(
    optimizer=dict(type='SGD', lr=.01, momentum=.9),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=.1)}))


def rates(runner):
    """Learning rate of every parameter, by name."""
    names = {id(value): name for name, value in
             runner.model.named_parameters(remove_duplicate=False)}
    return {names[id(parameter)]: group['lr']
            for group in runner.optim_wrapper.optimizer.param_groups
            for parameter in group['params']}


@pytest.mark.parametrize('scheduler', [
    dict(type='CosineRestartLR', periods=[1, 1], restart_weights=[1, .5],
         eta_min=0., by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=1, eta_min_ratio=.1,
         by_epoch=False),
    dict(type='OneCycleLR', eta_max=.1, total_steps=9, by_epoch=False)])
@pytest.mark.parametrize('lr_mult', [1., .5])
def test_every_schedule_moves_them_as_their_weights(
        scheduler, lr_mult, make_runner):
    runner = make_runner(
        'resnet', dict(HOOK, lr_mult=lr_mult), train_cfg=dict(max_epochs=1),
        param_scheduler=[scheduler], optim_wrapper=dict(PARAMWISE))
    runner.train()
    found = rates(runner)
    for layer in ('backbone.conv1', 'head.fc'):
        assert found[f'{layer}.weight_quantizer.step.ratio'] == \
            pytest.approx(lr_mult * found[f'{layer}.weight'])
    # OneCycleLR itself gives all groups one rate.
    assert scheduler['type'] == 'OneCycleLR' or \
        found['head.fc.weight'] > found['backbone.conv1.weight']


class Decays(Hook):
    """Notes the weight decay of all groups before every step."""
    priority = 'LOWEST'

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, *args, **kwargs):
        self.seen.append([group['weight_decay'] for group in
                          runner.optim_wrapper.param_groups[:2]])


@pytest.mark.parametrize('resumed', [False, True])
def test_a_schedule_of_the_weight_decay_is_not_theirs(resumed, make_runner,
                                                      tmp_path):
    options = dict(
        work_dir=tmp_path / 'run', param_scheduler=[dict(
            type='CosineAnnealingParamScheduler', param_name='weight_decay',
            eta_min=.4, by_epoch=False, end=9)])
    for epoch in range(1, 2 + resumed):
        runner = make_runner('resnet', HOOK, resume=epoch > 1,
                             train_cfg=dict(max_epochs=epoch), **options)
        decays = Decays()
        runner.register_hook(decays)
        runner.train()
    ordinary, ours = zip(*decays.seen)
    assert ordinary[-1] > .01 and not any(ours)


def test_a_plateau_lowers_theirs_as_well(make_runner):
    runner = make_runner(
        'resnet', HOOK, train_cfg=dict(max_epochs=1),
        param_scheduler=[dict(type='ReduceOnPlateauLR', rule='greater',
                              monitor='accuracy/top1', patience=0,
                              end=9)],
        optim_wrapper=dict(PARAMWISE))
    runner.train()
    for score in (2., 1.):
        runner.param_schedulers[0].step({'accuracy/top1': score})
    found = rates(runner)
    assert found['head.fc.weight'] == pytest.approx(.001)
    for layer in ('backbone.conv1', 'head.fc'):
        assert found[f'{layer}.weight_quantizer.step.ratio'] == \
            found[f'{layer}.weight']


def test_a_checkpoint_may_be_loaded_before_the_run(make_runner, tmp_path):
    torch.save(dict(state_dict=make_runner('resnet').model.state_dict()),
               tmp_path / 'float.pth')
    runner = make_runner('resnet', HOOK, train_cfg=dict(max_epochs=1))
    runner.load_checkpoint(str(tmp_path / 'float.pth'))
    runner.train()
    assert len(learned_of(runner)) == 2 * 54


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BackboneAndHead:
    """An optimizer for each, as people build them for GANs."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.head = optim_wrapper_cfg.get('head', 'Adam')

    def __call__(self, model):
        return OptimWrapperDict(
            backbone=OptimWrapper(torch.optim.SGD(
                model.backbone.parameters(), lr=.01)),
            head=OptimWrapper(getattr(torch.optim, self.head)(
                model.head.parameters(), lr=.001)))


@MODELS.register_module()
class TwoOptimizers(ImageClassifier):

    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        loss, logs = self.parse_losses(self._run_forward(data, mode='loss'))
        loss.backward()
        for each in optim_wrapper.values():
            each.step()
            each.zero_grad()
        return logs


def test_each_optimizer_gets_those_of_its_layers(make_runner, run_log):
    runner = make_runner(
        'resnet', HOOK, train_cfg=dict(max_epochs=1),
        model=dict(type='TwoOptimizers'), param_scheduler=None,
        optim_wrapper=dict(constructor='BackboneAndHead'))
    runner.train()
    found = {name: wrapper.optimizer.param_groups[1]
             for name, wrapper in runner.optim_wrapper.items()}
    assert len(found['head']['params']) == 2
    assert len(found['backbone']['params']) == 2 * 53
    assert found['head']['lr'] == .001 and found['backbone']['lr'] == .01
    assert "the optimizer 'head' trains 2 learned" in run_log(runner)
    assert all(float(each) != 1 for each in found['head']['params'])


@pytest.mark.parametrize('hooks, head, told', [
    ([HOOK], 'SGD', 'the optimizer head of the checkpoint is of another type'),
    ([HOOK], 'Adam', None),
    ([], 'Adam', 'the optimizer backbone of the checkpoint holds .* groups')])
def test_each_optimizer_of_a_resumed_run_is_looked_at(
        hooks, head, told, make_runner, tmp_path):
    model = dict(type='TwoOptimizers')
    if not hooks:
        model.update(type='QuantizedModel', architecture='TwoOptimizers',
                     quantization=LSQ)
    options = dict(param_scheduler=None, work_dir=tmp_path / 'run')
    make_runner('resnet', HOOK, model=dict(type='TwoOptimizers'),
                train_cfg=dict(max_epochs=1), optim_wrapper=dict(
                    constructor='BackboneAndHead'), **options).train()
    runner = make_runner(
        'resnet', *hooks, model=model, train_cfg=dict(max_epochs=2),
        resume=True, optim_wrapper=dict(
            constructor='BackboneAndHead', head=head), **options)
    if told is None:
        runner.train()
        return
    with pytest.raises(ValueError, match=told):
        runner.train()


def test_another_rate_of_theirs_is_not_dropped_without_a_word(make_runner):
    model = dict(type='QuantizedModel', architecture='ImageClassifier',
                 quantization=LSQ)
    with pytest.warns(UserWarning, match='set lr_mult of GDRQHook'):
        runner = make_runner(
            'resnet', dict(type='GDRQHook'), model=model,
            train_cfg=dict(max_epochs=1), optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=.01),
                paramwise_cfg=dict(custom_keys={
                    'quantizer': dict(lr_mult=.01)})))
        runner.train()
    found = rates(runner)
    assert found['head.fc.weight_quantizer.step.ratio'] == \
        found['head.fc.weight']


def test_a_rate_for_nothing_is_told(make_runner, run_log):
    runner = make_runner('resnet', dict(
        type='GDRQHook', lr_mult=.1, quantization=dict(
            weight=dict(bits=4), activation=dict(bits=4))))
    runner.train()
    assert run_log(runner).count('lr_mult=0.1 acts on nothing') == 1


@pytest.mark.parametrize('quantization', [
    LSQ, dict(weight=dict(type='LSQ', bits=4),
              activation=dict(type='LSQPlus', bits=4)),
    dict(weight=dict(bits=4), activation=dict(type='PACT', bits=4))],
    ids=['LSQ', 'LSQPlus', 'PACT'])
def test_what_was_trained_is_tested_without_training(quantization,
                                                     make_runner, tmp_path):
    """Optimizer and schedulers are not built then, as in "gdrq test"."""
    hook = dict(HOOK, quantization=quantization)
    trained = make_runner('resnet', hook)
    trained.train()
    path = str(Path(trained.work_dir) / 'epoch_2.pth')
    runner = make_runner('resnet', hook, work_dir=tmp_path / 'test',
                         load_from=path)
    assert runner.param_schedulers  # as the config has them
    assert runner.test()
    for name, value in trained.model.state_dict().items():
        assert torch.equal(runner.model.state_dict()[name], value), name
