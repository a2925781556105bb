"""Train, or calibrate, and test one cell, in a process of its own."""
import copy
import io
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Callable, Dict, List

import torch
from jobs.training import CHECKPOINT, calibrate, run_config
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from mmengine.utils import import_modules_from_strings
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.checkpoint import float_weights, pack
from gdrq_mm.openmmlab.evaluating import scalars
from gdrq_mm.openmmlab.head_outputs import find_head_outputs
from gdrq_mm.openmmlab.publish import load_all
from gdrq_mm.openmmlab.reading import read_checkpoint
from gdrq_mm.openmmlab.scopes import build_model
from gdrq_mm.quantizers import ActivationQuantizer
from gdrq_mm.training import Distillation, DistillConfig

STEPS = 7  # of each model, one after the other, of which the median counts


def run_cell(name: str, kind: str, config: dict, folder: str, start: str,
             batches: int) -> dict:
    """Train a cell (or only calibrate or test it) and test it.

    Args:
        name (str): Unique, for the runner.
        kind (str): 'train', 'calibrate' or 'test'.
        config (dict): The whole config.
        folder (str): Where to write.
        start (str): Checkpoint of the float model.
        batches (int): Batches of the calibration.

    Returns:
        dict: ``metrics`` of the evaluator, seconds, outputs; of a calibrated
        model also what does not depend on training: levels, size, step time.
    """
    begin, path = time.monotonic(), Path(folder)
    cfg = Config(config)
    import_modules_from_strings(**cfg.custom_imports)
    init_default_scope(cfg.default_scope)
    extra = {}
    if kind == 'calibrate':
        start = calibrate(cfg, start, path, batches)
        extra = properties(Config(config), start)
    _, metrics = run_config(cfg, name, path, start, kind == 'train')
    saved = [] if kind == 'test' else [str(path / CHECKPOINT)]
    return dict(metrics=scalars(metrics), outputs=saved,
                seconds=round(time.monotonic() - begin, 1), **extra)


def properties(cfg: Config, checkpoint: str) -> dict:
    """What a scheme makes of a model, trained or not.

    Args:
        cfg (Config): The config, with a GDRQHook at its end.
        checkpoint (str): Checkpoint of the calibrated model.

    Returns:
        dict: ``activation_levels`` (levels -> quantizers), ``bytes`` and
        ``float_bytes`` of the files, ``step_ratio`` (time of a training step
        over that of the float model).
    """
    hook = cfg.custom_hooks[-1].to_dict()
    quantization = hook['quantization']
    plain, model = build_model(cfg), build_model(cfg)
    quantize_(model, quantization)
    weights = read_checkpoint(checkpoint)['state_dict']
    load_all(model, weights)
    load_all(plain, float_weights(weights))
    if hook.get('distill') is not None:
        config = DistillConfig.from_dict(hook['distill'])
        teacher = copy.deepcopy(plain)
        outputs, branches = find_head_outputs(teacher, config.outputs)
        Distillation(model, teacher, outputs, config, branches).start()
    bits = quantization['activation']['bits']
    levels = Counter(_levels(module) for module in model.modules()
                     if isinstance(module, ActivationQuantizer)
                     and module.bits == bits)
    return dict(
        activation_levels={str(key): levels[key] for key in sorted(levels)},
        bytes=_bytes(pack(model)), float_bytes=_bytes(plain.state_dict()),
        step_ratio=step_ratio(cfg, plain, model))


def _levels(quantizer: ActivationQuantizer) -> int:
    try:
        found = quantizer.code_range()
    except ValueError:  # they are not equally spaced
        return 2**quantizer.bits
    return found.high - found.low + 1


def _bytes(state_dict: Dict[str, torch.Tensor]) -> int:
    file = io.BytesIO()
    torch.save(state_dict, file)
    return file.tell()


def step_ratio(cfg: Config, plain: nn.Module, model: nn.Module) -> float:
    """Time of a training step over that of the float model.

    Both take steps in turn on one batch, so that a busy machine slows both;
    on a CPU the time of this process alone counts. Of a training's first
    hundred steps, in which thresholds take longer, none is measured.
    """
    for module in model.modules():
        if isinstance(module, ActivationQuantizer):
            module.end_first_looks()
    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time
    loader = Runner.build_dataloader(copy.deepcopy(cfg.train_dataloader),
                                     seed=0)
    batch = next(iter(loader))

    def stepper(net: nn.Module) -> Callable[[], float]:
        net.to('cuda' if cuda else 'cpu').train()
        wrapper = build_optim_wrapper(net, copy.deepcopy(cfg.optim_wrapper))

        def step() -> float:
            data = copy.deepcopy(batch)
            begin = clock()
            net.train_step(data, wrapper)
            if cuda:
                torch.cuda.synchronize()
            return clock() - begin

        return step

    set_random_seed(0)
    steps = stepper(plain), stepper(model)
    times: List[List[float]] = [[], []]
    for number in range(STEPS + 1):
        for each, step in zip(times, steps):
            seconds = step()
            if number:  # the first one sets up
                each.append(seconds)
    return median(times[1]) / median(times[0])
