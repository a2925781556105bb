"""Two processes train as one that sees the joint batch."""
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name('ddp_worker.py')
STEPS = 4


@pytest.fixture(scope='module')
def results(tmp_path_factory, run_processes, request):
    """State dicts and all-reduce calls: rank 0 and 1 of 2, 0 of 1."""
    folder = tmp_path_factory.mktemp('ddp')
    cfg = request.getfixturevalue('load_resnet')
    cfg.custom_hooks = [dict(type='GDRQHook', quantization=dict(
        weight=dict(bits=4),
        # A mean is that of the joint batch, to rounding.
        activation=dict(bits=4, threshold='nonzero')))]
    # Batch statistics would differ: each process sees half of the batch.
    cfg.model.backbone.norm_eval = True
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


@pytest.fixture(scope='module')
def load_resnet(demo_data):
    from mmengine.config import Config
    cfg = Config.fromfile(WORKER.parent / 'configs' / 'resnet.py')
    cfg.train_dataloader.dataset.data_root = str(demo_data / 'imagenet')
    for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
        cfg.pop(key)
    return cfg


def thresholds(state_dict):
    return {key: value for key, value in state_dict.items()
            if '_quantizer.' in key}


def test_weights_and_thresholds_are_equal_on_both_ranks(results):
    first, second, _ = results
    first, second = first['state_dict'], second['state_dict']
    assert first.keys() == second.keys()
    assert len(thresholds(first)) == 54 * 4
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_two_processes_get_the_thresholds_of_the_joint_batch(results):
    ours, _, joint = (result['state_dict'] for result in results)
    for key, value in thresholds(joint).items():
        if key.endswith(('signed', 'num_updates')):
            assert torch.equal(ours[key], value), key
        else:
            # Float noise rounds a few values to the next level.
            torch.testing.assert_close(ours[key], value, rtol=2e-2,
                                       atol=1e-6,
                                       msg=lambda text: f'{key}: {text}')


def test_two_processes_get_the_weights_of_the_joint_batch(results):
    """Up to the few values that float noise rounds to the next level."""
    ours, _, joint = (result['state_dict'] for result in results)
    start = results[2]['start']
    difference = moved = 0.
    for key, value in joint.items():
        if key.endswith(('.weight', '.bias')):
            difference += float((ours[key] - value).square().sum())
            moved += float((value - start[key]).square().sum())
    assert moved > 0
    assert difference**.5 < .05 * moved**.5, (difference**.5, moved**.5)


def test_there_is_one_all_reduce_a_step(results):
    first, second, _ = results
    assert first['calls'] == second['calls'] == list(range(STEPS))
