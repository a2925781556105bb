"""One of the processes of test_distributed.py; not a test itself."""
import os
import sys

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

import gdrq_mm  # noqa: F401

torch.set_num_threads(1)
calls = []  # one entry an all-reduce of gdrq_mm: the step
counted = dist.all_reduce


def all_reduce(*args, **kwargs):
    if sys._getframe(1).f_globals['__name__'].startswith('gdrq_mm'):
        calls.append(Steps.iter)
    return counted(*args, **kwargs)


@HOOKS.register_module()
class Steps(Hook):
    iter = 0

    def before_train(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        Steps.start = {key: value.clone()
                       for key, value in model.state_dict().items()}

    def before_train_iter(self, runner, **kwargs):
        Steps.iter = runner.iter


def main(config, rank, world_size, folder):
    rank, world_size = int(rank), int(world_size)
    cfg = Config.fromfile(config)
    if world_size > 1:
        dist.init_process_group(
            'gloo', init_method=f'file://{folder}/rendezvous', rank=rank,
            world_size=world_size)
        dist.all_reduce = all_reduce
        cfg.launcher = 'pytorch'
        os.environ['LOCAL_RANK'] = str(rank)
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', device_ids=None,
            broadcast_buffers=False)
    cfg.custom_hooks.append(dict(type='Steps'))
    cfg.work_dir = f'{folder}/work_{world_size}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    model = runner.model.module if world_size > 1 else runner.model
    torch.save(dict(state_dict=model.state_dict(), calls=calls,
                    start=Steps.start),
               f'{folder}/{rank}_of_{world_size}.pth')
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
