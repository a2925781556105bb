"""Quantization without training: a float checkpoint -> a quantized one."""
import copy
import functools
import itertools
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

import torch
from mmengine.logging import print_log
from mmengine.runner import Runner, set_random_seed
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import DataLoader

from ..checkpoint import NAME
from ..modes import eval_mode
from ..quantizers import is_int
from ..training import (
    QuantizationState,
    calibrate,
    update_bn_stats,
)
from ..version import __version__
from ..writing import check_new, save_whole
from .publish import inference_config, load_all
from .reading import read_checkpoint, weights_of
from .scopes import build_model, read_config


def training_forwards(model: nn.Module, dataloader: DataLoader,
                      batches: int) -> Iterator[Callable]:
    """What a training iteration computes, on the first batches of a loader.

    The forward of ``mode='loss'``, because it calls all layers, those of
    auxiliary heads too. Some models have no loss in eval mode, in which
    callers put them (PIDNet's heads return less then, DINO makes no noisy
    queries): those run in training mode, but for normalization and dropout.

    Args:
        model (nn.Module): A model of OpenMMLab.
        dataloader (DataLoader): Gives training batches.
        batches (int): At most this many.
    """
    switched: Optional[List[nn.Module]] = None
    for batch in itertools.islice(dataloader, batches):
        data = model.data_preprocessor(batch, True)
        if switched is None:
            switched = [] if _has_eval_loss(model, data) else [
                module for module in model.modules() if not _is_random(module)]
        yield functools.partial(_loss, model, data, switched)


def _loss(model: nn.Module, data: Any, switched: List[nn.Module]) -> None:
    modes = [module.training for module in switched]
    try:
        for module in switched:
            module.training = True
        model._run_forward(data, mode='loss')
    finally:
        for module, training in zip(switched, modes):
            module.training = training


@torch.no_grad()
def _has_eval_loss(model: nn.Module, data: Any) -> bool:
    try:
        with eval_mode(model):
            model._run_forward(copy.deepcopy(data), mode='loss')
    except Exception as error:  # whatever expects training mode
        # If something else is wrong, the loss in training mode raises it.
        print_log(f'{type(model).__name__} has no loss in eval mode '
                  f'({error!r}): it runs in training mode, but for '
                  'normalization and dropout', 'current')
        return False
    return True


def _is_random(module: nn.Module) -> bool:
    """Whether training mode changes values: normalization, dropout (also
    DropPath and DropBlock), and attention, which has a dropout inside; of our
    state, whether thresholds move."""
    return isinstance(module, (
        _NormBase, nn.MultiheadAttention, nn.RNNBase, QuantizationState)
        ) or 'Drop' in type(module).__name__


def calibrate_checkpoint(config: str,
                         checkpoint: str,
                         out: str,
                         batches: int = 32,
                         recalibrate: bool = True,
                         cfg_options: Optional[dict] = None) -> int:
    """Quantize a float checkpoint with some training batches, no training.

    Batch normalization is recalibrated to the quantized weights, activation
    thresholds are set, and it is recalibrated to the quantized activations.
    Random numbers, of augmentation too, begin with the seed of the config's
    ``randomness`` (0 where it has none): the result is always the same.

    Args:
        config (str): With the ``quantization``, in a GDRQHook or in the model.
        checkpoint (str): Checkpoint of the float model.
        out (str): Checkpoint to write, for the package's test tool with the
            same config, to go on training from, or to publish.
        batches (int): Number of batches of the config's ``train_dataloader``.
            Defaults to 32.
        recalibrate (bool): Recalibrate batch normalization. Defaults to True.
        cfg_options (dict, optional): Changes of the config.

    Returns:
        int: Number of batches used: fewer where the data set is smaller.

    Raises:
        ValueError: ``batches`` is no positive number, the config quantizes
            nothing or has no training data, or the checkpoint is quantized
            already or none at all.
        RuntimeError: The checkpoint is damaged, or does not fit the config.
        FileExistsError: ``out`` is there.
    """
    if not is_int(batches) or batches < 1:
        raise ValueError(f'batches is {batches}, allowed: 1 or more')
    out = Path(out)
    check_new(out)
    cfg = read_config(config, cfg_options)
    if not cfg.get('train_dataloader'):
        raise ValueError(
            f'{config} has no train_dataloader, whose batches set the '
            'thresholds of activations')
    model_cfg = inference_config(cfg)
    trained = read_checkpoint(checkpoint)
    weights = weights_of(trained)
    if f'{NAME}.schemes' in weights:
        raise ValueError(f'{checkpoint} is quantized already; calibrate the '
                         'checkpoint of a float model')
    model = build_model(model_cfg)
    load_all(model, weights)
    model.to('cuda' if torch.cuda.is_available() else 'cpu')

    seed = cfg.get('randomness', {}).get('seed') or 0

    def forwards():
        # A new loader each time, and the same batches.
        set_random_seed(seed)
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=seed)
        return training_forwards(model, loader, batches)

    with torch.no_grad():
        if recalibrate:
            update_bn_stats(model, forwards())
        used = calibrate(model, forwards())
        if recalibrate:
            update_bn_stats(model, forwards())
    meta = {key: trained['meta'][key] for key in ('dataset_meta', )
            if key in trained.get('meta', {})}
    meta.update(cfg=cfg.pretty_text, gdrq_mm_version=__version__)
    state_dict = {key: value.cpu() for key, value in
                  model.state_dict().items()}
    save_whole(dict(meta=meta, state_dict=state_dict), out)
    return used
