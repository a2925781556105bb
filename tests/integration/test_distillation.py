"""Distillation with what else runs do."""
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

WORKER = Path(__file__).with_name('ddp_worker.py')
HOOK = dict(type='GDRQHook', quantization=dict(
    weight=dict(bits=2), activation=dict(bits=4)), distill=dict())


@pytest.fixture
def start(build_model, tmp_path):
    """Checkpoint of a float ResNet."""
    path = str(tmp_path / 'float.pth')
    torch.save(dict(state_dict=build_model('resnet', seed=3).state_dict()),
               path)
    return path


def distilled(runner):
    return [losses['loss_distill_cls'] for losses in runner.record.losses]


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_mixed_precision(dtype, amp, make_runner, start, tmp_path):
    plain = make_runner('resnet', HOOK, load_from=start,
                        work_dir=tmp_path / 'plain')
    runner = make_runner(
        'resnet', HOOK, load_from=start,
        **{'optim_wrapper.type': 'AmpOptimWrapper',
           'optim_wrapper.dtype': dtype,
           **({'optim_wrapper.loss_scale': 8.} if dtype == 'float16' else {})})
    for each in (plain, runner):
        each.train()
    # The teacher is computed in that precision as well.
    assert distilled(runner)[0] == pytest.approx(distilled(plain)[0], rel=.1)
    assert all(0 < value < 100 for value in distilled(runner))


def test_accumulated_gradients_phases_and_averaged_weights(make_runner, start):
    """All steps of an accumulation are taught, and the reshaped model too."""
    runner = make_runner(
        'resnet', dict(HOOK, begin_iter=2), dict(type='EMAHook'),
        load_from=start, **{'optim_wrapper.accumulative_counts': 2})
    runner.train()
    assert runner.record.phases == ['reshape'] * 2 + ['quantize'] * 2
    assert all(value > 0 for value in distilled(runner))
    # A step after two batches: the second one sees the weights of the first.
    assert len(runner.record.losses) == 4


def test_a_compiled_model_is_refused(make_runner, start):
    """It trains alike, but every step compiles it anew."""
    runner = make_runner('resnet', HOOK, load_from=start,
                         compile=dict(backend='eager'))
    with pytest.raises(ValueError, match="remove the config's compile or"):
        runner.train()


@pytest.fixture(scope='module')
def results(tmp_path_factory, run_processes, demo_data):
    """What ranks 0 and 1 of 2, and a single process, end with."""
    folder = tmp_path_factory.mktemp('ddp')
    cfg = Config.fromfile(WORKER.parent / 'configs' / 'resnet.py')
    cfg.train_dataloader.dataset.data_root = str(demo_data / 'imagenet')
    for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
        cfg.pop(key)
    cfg.custom_hooks = [HOOK]
    # Batch statistics would differ: each process sees half of the batch.
    cfg.model.backbone.norm_eval = True
    init_default_scope('mmpretrain')
    torch.manual_seed(3)
    cfg.load_from = str(folder / 'float.pth')
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()),
               cfg.load_from)
    jobs = []
    for world_size in (2, 1):
        cfg.train_dataloader.batch_size = 4 // world_size
        path = folder / f'config_{world_size}.py'
        cfg.dump(path)
        jobs += [[WORKER, path, rank, world_size, folder]
                 for rank in range(world_size)]
    run_processes(*jobs)
    return [torch.load(folder / f'{name}.pth', weights_only=True)
            for name in ('0_of_2', '1_of_2', '0_of_1')]


def test_two_processes_learn_what_one_learns_of_the_joint_batch(results):
    first, second, joint = (result['state_dict'] for result in results)
    difference = moved = 0.
    for key, value in joint.items():
        assert torch.equal(first[key], second[key]), key
        if key.endswith(('.weight', '.bias')):
            difference += float((first[key] - value).square().sum())
            moved += float((value - results[2]['start'][key]).square().sum())
    assert moved > 0
    assert difference**.5 < .05 * moved**.5, (difference**.5, moved**.5)
