"""Train and test one cell in this process, by mmengine's own runner."""
import subprocess
import time
from pathlib import Path
from typing import Optional

import torch
from jobs.checkout import ROOT
from jobs.training import CHECKPOINT, calibrate, run_config
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.utils import import_modules_from_strings

from gdrq_mm.checkpoint import float_weights
from gdrq_mm.openmmlab.reading import read_checkpoint
from gdrq_mm.plan import QuantReport
from gdrq_mm.training import get_state, metrics

from .cells import metric_of

CALIBRATION_BATCHES = 16


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
        name (str): Name of the cell.
        seed (int): Seed of the training.
        config (dict): The whole config.
        task (str): Task of the demo, which knows the metric.
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
    if latent:
        start = write_float_weights(start, folder / 'float.pth')
    if kind == 'calibrate':
        start = calibrate(cfg, start, folder, CALIBRATION_BATCHES)
    train = kind == 'train'
    runner, measured = run_config(cfg, f'{name}_{seed}', folder, start, train,
                                  () if train else (RoundHook(), ))
    results = dict(metric=metric_of(measured, task), by='run_experiments.py',
                   threads=torch.get_num_threads(), device=device_name(),
                   commit=commit(),
                   date=time.strftime('%Y-%m-%d %H:%M', time.gmtime()))
    if kind != 'test':
        results['checkpoint'] = str(folder / CHECKPOINT)
    state = get_state(runner.model)
    if state is not None:
        schemes = [plan.weight for plan in state.plans if plan.weight]
        results.update(
            metrics(state), policy=QuantReport(state.plans).policy(),
            weight_levels={str(scheme.bits): scheme.num_levels()
                           for scheme in schemes})
    results['seconds'] = round(time.monotonic() - begin, 1)
    return results


def device_name() -> str:
    """What mmengine's runner trains on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() \
        else 'CPU'


def commit() -> Optional[str]:
    """Commit of the checkout, None without git; '+' where files differ."""
    try:
        return subprocess.run(
            ['git', 'describe', '--always', '--abbrev=10', '--exclude=*',
             '--dirty=+'], cwd=ROOT, capture_output=True, text=True,
            check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_float_weights(checkpoint: str, out: Path) -> str:
    """Write a checkpoint without what quantizers added."""
    loaded = read_checkpoint(checkpoint)
    weights = float_weights(loaded['state_dict'])
    torch.save(dict(meta={}, state_dict=weights), out)
    return str(out)
