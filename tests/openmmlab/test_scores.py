"""Best checkpoints and early stopping go by quantized evaluations."""
import copy
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from gdrq_mm.openmmlab.publish import publish

QUANTIZATION = dict(weight=dict(bits=4), activation=dict(bits=4))


@METRICS.register_module()
class FallingScore(BaseMetric):
    """The first evaluation of a run is the best one."""

    def __init__(self, start):
        super().__init__()
        self.score = start

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        self.score -= 1
        return dict(acc=self.score)


def hook(**kwargs):
    return dict(type='GDRQHook', quantization=QUANTIZATION, **kwargs)


@pytest.fixture
def validated(load_config):
    """Function -> config that validates after each of its epochs."""

    def load(start=100, **options):
        cfg = load_config('resnet')
        cfg.train_dataloader.dataset.indices = 4  # one iteration an epoch
        cfg.val_dataloader = copy.deepcopy(cfg.test_dataloader)
        cfg.val_dataloader.dataset.indices = 2
        cfg.val_evaluator = dict(type='FallingScore', start=start)
        cfg.val_cfg = dict()
        cfg.train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=1)
        cfg.merge_from_dict({'default_hooks.checkpoint': dict(
            type='CheckpointHook', interval=1, save_best='acc',
            rule='greater')})
        cfg.merge_from_dict(options)
        return cfg

    return load


def best(runner):
    return sorted(path.name for path in Path(runner.work_dir).glob('best*'))


def test_best_checkpoint_is_a_quantized_one(
        validated, make_runner, run_log, tmp_path):
    runner = make_runner(validated(), hook(begin_epoch=2))
    runner.train()
    assert best(runner) == ['best_acc_epoch_3.pth']
    saved = torch.load(f'{runner.work_dir}/best_acc_epoch_3.pth',
                       weights_only=True)
    assert saved['state_dict']['quantization_state.phase_index'] == 1
    log = run_log(runner)
    assert 'evaluates the reshaped float model' in log
    assert 'do not count for CheckpointHook' in log


def test_scores_before_any_threshold_do_not_count(validated, make_runner):
    """Steps that accumulate gradients move none: activations are float."""
    runner = make_runner(
        validated(**{'optim_wrapper.accumulative_counts': 2}), hook())
    runner.train()
    assert 'best_acc_epoch_2.pth' in best(runner)
    assert runner.message_hub.get_info('best_score') == 98  # not 99


def test_run_that_only_reshapes_keeps_its_best(validated, make_runner):
    runner = make_runner(validated(), hook(begin_epoch=9))
    runner.train()
    assert best(runner) == ['best_acc_epoch_1.pth']


def test_early_stopping_waits_for_rounding(validated, make_runner):
    """It stops after two evaluations that are not better than the best."""
    stop = dict(type='EarlyStoppingHook', monitor='acc', patience=2)
    runner = make_runner(
        validated(train_cfg=dict(max_epochs=8)), hook(begin_epoch=3), stop)
    runner.train()
    assert len(runner.record.phases) == 6
    assert runner.record.phases.count('quantize') == 3


@pytest.mark.parametrize('begin_epoch, found', [(None, 'float'),
                                                (9, 'reshape')])
def test_resumed_run_forgets_the_scores_of_another_model(
        begin_epoch, found, validated, make_runner, run_log, tmp_path):
    before = [] if begin_epoch is None else [hook(begin_epoch=begin_epoch)]
    make_runner(validated(train_cfg=dict(max_epochs=2)), *before,
                work_dir=tmp_path / 'run').train()
    runner = make_runner(validated(start=50), hook(bn_batches=1),
                         work_dir=tmp_path / 'run', resume=True)
    runner.train()
    assert best(runner) == ['best_acc_epoch_1.pth', 'best_acc_epoch_3.pth']
    log = run_log(runner)
    assert f'is the best checkpoint of the {found} model and stays' in log
    assert "phase 'quantize' from iteration 2" in log
    assert 'recalibrated' in log.partition("from iteration 2")[2].partition(
        'Epoch(train)')[0]


def test_resumed_quantized_run_goes_on_with_its_scores(
        validated, make_runner, tmp_path):
    make_runner(validated(train_cfg=dict(max_epochs=2)), hook(),
                work_dir=tmp_path / 'run').train()
    runner = make_runner(validated(start=50), hook(),
                         work_dir=tmp_path / 'run', resume=True)
    runner.train()
    assert best(runner) == ['best_acc_epoch_1.pth']


def test_test_of_a_checkpoint_says_its_phase(
        validated, make_runner, run_log, tmp_path):
    trained = make_runner(validated(), hook(begin_epoch=2),
                          work_dir=tmp_path / 'train')
    trained.train()
    for epoch, words in ((1, 'evaluates the reshaped float model'),
                         (3, "evaluates the quantized model (phase")):
        runner = make_runner(
            validated(), hook(), work_dir=tmp_path / str(epoch),
            load_from=f'{trained.work_dir}/epoch_{epoch}.pth')
        runner.test()
        assert words in run_log(runner)


def test_best_checkpoint_publishes(validated, make_runner, tmp_path):
    runner = make_runner(validated(), hook(begin_epoch=1, bn_batches=1))
    runner.train()
    runner.cfg.dump(tmp_path / 'config.py')
    published, _ = publish(
        str(tmp_path / 'config.py'),
        f'{runner.work_dir}/best_acc_epoch_2.pth', str(tmp_path / 'out'))
    assert published.exists()


def test_a_plateau_is_one_of_the_quantized_model(validated, make_runner):
    """Four reshaped scores, each below the one before, would have lowered the
    rate three times."""
    runner = make_runner(
        validated(train_cfg=dict(max_epochs=6), param_scheduler=[dict(
            type='ReduceOnPlateauLR', monitor='acc', rule='greater',
            patience=0, end=99)]),
        hook(begin_epoch=4))
    rate = runner.cfg.optim_wrapper.optimizer.lr
    runner.train()
    plateau, = runner.param_schedulers
    assert plateau.best == 95  # of the fifth evaluation; the sixth is worse
    group, = runner.optim_wrapper.optimizer.param_groups
    assert group['lr'] == pytest.approx(.1 * rate)


def test_a_plateau_of_a_resumed_float_run_is_forgotten(
        validated, make_runner, tmp_path):
    plateau = dict(type='ReduceOnPlateauLR', monitor='acc', rule='greater',
                   patience=9, end=99)
    make_runner(validated(train_cfg=dict(max_epochs=2),
                          param_scheduler=[plateau]),
                work_dir=tmp_path / 'run').train()
    runner = make_runner(validated(start=50, param_scheduler=[plateau]),
                         hook(), work_dir=tmp_path / 'run', resume=True)
    runner.train()
    assert runner.param_schedulers[0].best == 49
