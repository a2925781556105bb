"""Statistics of batch normalization that fit the quantized weights.

Running statistics are those of the float model after a conversion, and those
of the last hundreds of steps after a training. mmpretrain's PreciseBNHook
serves for neither: it leaves out frozen layers (mmdet's ``norm_eval``), runs
the model in training mode, where activation thresholds count what they see,
and is there in classification only.
"""
from typing import Callable, Iterable, List

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..modes import eval_mode, side_effects_undone
from .state import get_state, quantizer_entries

NO_BATCHES = ('give it some; a loader with drop_last=True has none where the '
              'data set is smaller than one batch')


@torch.no_grad()
def update_bn_stats(model: nn.Module,
                   forwards: Iterable[Callable]) -> int:
    """Average the batch statistics of all BN layers over some batches.

    All else stays as it is, and all other modules are in eval mode
    meanwhile: no dropout. Frozen BN layers are
    recalibrated as well. Where training is distributed, the statistics are
    averaged over the ranks, which must bring equally many batches.

    Args:
        model (nn.Module): Float or quantized.
        forwards (iterable of callables): Each runs the model on one batch,
            e.g. ``(lambda: model(x) for x in batches)``.

    Returns:
        int: Number of batches.

    Raises:
        ValueError: No batch came; the statistics stay as they were.
    """
    norms = [module for module in model.modules()
             if isinstance(module, _BatchNorm)
             and module.running_mean is not None]
    before = [(norm.momentum, *(buffer.clone() for buffer in _buffers(norm)))
              for norm in norms]
    state = get_state(model)
    warned = state is not None and state._warned
    if state is not None:
        state._warned = True  # thresholds may come after this
    batches = 0
    try:
        # Quantizers look after theirs.
        with eval_mode(model), side_effects_undone(model, [
                *(each for norm in norms for each in _buffers(norm)),
                *quantizer_entries(state)]):
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # the mean over batches
            for batches, forward in enumerate(forwards, 1):
                forward()
        if batches:
            _average_over_ranks(norms)
    except BaseException:
        batches = 0
        raise
    finally:
        if state is not None:
            state._warned = warned
        for norm, (momentum, mean, var, tracked) in zip(norms, before):
            if not batches or norm.num_batches_tracked == 0:  # not called
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(var)
            norm.num_batches_tracked.copy_(tracked)
            norm.momentum = momentum
    if not batches:
        raise ValueError(f'update_bn_stats got no batches: {NO_BATCHES}')
    return batches


def _buffers(norm: _BatchNorm) -> tuple:
    return norm.running_mean, norm.running_var, norm.num_batches_tracked


def _average_over_ranks(norms: List[_BatchNorm]) -> None:
    """One all-reduce for all layers."""
    if not norms or not dist.is_available() or not dist.is_initialized() \
            or dist.get_world_size() == 1:
        return
    buffers = [buffer for norm in norms
               for buffer in (norm.running_mean, norm.running_var)]
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts):
        buffer.copy_(part)
