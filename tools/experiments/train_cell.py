"""Train and test one cell in this process, by mmengine's own runner."""
import time
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from gdrq_mm.checkpoint import float_weights
from gdrq_mm.openmmlab.calibrate import calibrate_checkpoint
from gdrq_mm.openmmlab.reading import read_checkpoint
from gdrq_mm.plan import QuantReport
from gdrq_mm.training import get_state

from .cells import metric_of

CALIBRATION_BATCHES = 16
CHECKPOINT = 'last.pth'


class RoundHook(Hook):
    """Test the model rounded, also where it was only reshaped before."""

    def before_test(self, runner) -> None:
        state = get_state(runner.model)
        if state is not None and state.phase == 'reshape':
            state.set_phase('quantize')


def run_cell(name: str, seed: int, config: dict, task: str, folder: str,
             start: str = None, kind: str = 'train',
             latent: bool = False) -> dict:
    """Train a cell (or only convert or calibrate it) and test it.

    Args:
        name (str): Of the cell.
        seed (int): Of the training.
        config (dict): The whole config.
        task (str): Of the demo, which knows the metric.
        folder (str): Where to write.
        start (str, optional): Checkpoint to begin with.
        kind (str): 'train', 'test' or 'calibrate'. Defaults to 'train'.
        latent (bool): Take only the float weights of ``start``.

    Returns:
        dict: Metric in points, seconds, checkpoint, and what the quantized
        layers tell.
    """
    begin, folder = time.monotonic(), Path(folder)
    cfg = Config(config)
    import_modules_from_strings(**cfg.custom_imports)
    cfg.work_dir = str(folder)
    # Runners of one name and second would share logger and message hub.
    cfg.experiment_name = f'{name}_{seed}'.replace('/', '_')
    if latent:
        start = write_float_weights(start, folder / 'float.pth')
    if kind == 'calibrate':
        path = folder / 'config.py'
        cfg.dump(path)
        calibrate_checkpoint(path, start, folder / CHECKPOINT,
                             CALIBRATION_BATCHES)
        start = str(folder / CHECKPOINT)
    cfg.load_from = start
    if kind != 'train':
        cfg.update(train_dataloader=None, train_cfg=None, optim_wrapper=None,
                   param_scheduler=None)
    runner = Runner.from_cfg(cfg)
    if kind == 'train':
        runner.train()
        runner.save_checkpoint(str(folder), CHECKPOINT, save_optimizer=False,
                               save_param_scheduler=False)
    else:
        runner.register_hook(RoundHook())
    metrics = runner.test()
    results = dict(metric=metric_of(metrics, task), by='run_experiments.py',
                   threads=torch.get_num_threads())
    if kind != 'test':
        results['checkpoint'] = str(folder / CHECKPOINT)
    state = get_state(runner.model)
    if state is not None:
        results.update(metrics(state), policy=QuantReport(
            state.plans).policy())
    results['seconds'] = round(time.monotonic() - begin, 1)
    return results


def write_float_weights(checkpoint: str, out: Path) -> str:
    """Write a checkpoint without what quantizers added."""
    loaded = read_checkpoint(checkpoint)
    weights = float_weights(loaded['state_dict'])
    torch.save(dict(meta={}, state_dict=weights), out)
    return str(out)
