"""Train or calibrate, and test a config, in this process."""
from pathlib import Path
from typing import Optional, Sequence, Tuple

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint

from gdrq_mm.openmmlab.calibrate import calibrate_checkpoint

CHECKPOINT = 'last.pth'


def run_config(cfg: Config, name: str, folder: Path, start: Optional[str],
               train: bool = True, hooks: Sequence[Hook] = ()
               ) -> Tuple[Runner, dict]:
    """Train the model of a config, or only load it, and test it.

    What was interrupted goes on from its last checkpoint in the folder. The
    trained model is saved there as ``CHECKPOINT``.

    Args:
        cfg (Config): The whole config; changed here.
        name (str): Unique, for the runner.
        folder (Path): Where to write.
        start (str, optional): Checkpoint to begin with.
        train (bool): Train it. Defaults to True.
        hooks (sequence[Hook]): Registered before the test.

    Returns:
        tuple[Runner, dict]: The runner, and what its evaluator says.
    """
    cfg.work_dir = str(folder)
    # Runners of one name and second would share logger and message hub.
    cfg.experiment_name = name.replace('/', '_')
    cfg.update(load_from=start, resume=False)
    # The model at the end is tested, none before it.
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    if train:
        cfg.default_hooks.checkpoint = checkpoint_hook(cfg.train_cfg)
        latest = find_latest_checkpoint(str(folder))
        if latest:  # it was interrupted
            cfg.update(load_from=latest, resume=True)
    else:
        cfg.default_hooks.checkpoint = None
        cfg.update(train_dataloader=None, train_cfg=None, optim_wrapper=None,
                   param_scheduler=None)
    runner = Runner.from_cfg(cfg)
    if train:
        runner.train()
        runner.save_checkpoint(str(folder), CHECKPOINT, save_optimizer=False,
                               save_param_scheduler=False)
    for hook in hooks:
        runner.register_hook(hook)
    return runner, runner.test()


def calibrate(cfg: Config, start: str, folder: Path, batches: int) -> str:
    """Give the model of a config thresholds from some batches, no training.

    Returns:
        str: The checkpoint, ``CHECKPOINT`` in the folder.
    """
    config, out = folder / 'config.py', str(folder / CHECKPOINT)
    cfg.dump(config)
    calibrate_checkpoint(str(config), start, out, batches)
    return out


def checkpoint_hook(train_cfg: dict) -> dict:
    """Keeps what an interrupted training goes on from, about ten times."""
    epochs = train_cfg.get('max_epochs')
    return dict(
        type='CheckpointHook', by_epoch=bool(epochs), max_keep_ckpts=1,
        interval=-(-(epochs or train_cfg.max_iters) // 10))
