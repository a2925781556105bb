"""How a model runs: training or eval mode, compiled or not."""
import itertools
from contextlib import contextmanager
from typing import Iterable

import torch
from torch import Tensor, nn


def is_compiling() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` looks at this code."""
    if hasattr(torch.compiler, 'is_compiling'):  # torch >= 2.3
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()


def is_traced_by_dynamo() -> bool:
    """Whether ``torch.compile`` reads this code instead of running it."""
    if hasattr(torch.compiler, 'is_dynamo_compiling'):  # torch >= 2.3
        return torch.compiler.is_dynamo_compiling()
    return torch._dynamo.is_compiling()


@contextmanager
def default_at_least_float32():
    """New tensors are float32 where the default is a dtype of fewer digits."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.promote_types(default, torch.float32))
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@contextmanager
def modes_restored(model: nn.Module):
    """Afterwards every module trains or not, as before."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def eval_mode(model: nn.Module):
    """Put ``model`` in eval mode; afterwards every module is as before."""
    with modes_restored(model):
        model.eval()
        yield


@contextmanager
def side_effects_undone(model: nn.Module, moving: Iterable[Tensor]):
    """Put back what forwards change besides the result that they run for.

    The loss of a contrastive model fills its queue and moves its momentum
    encoder: buffers, and parameters that no gradient trains.

    Args:
        model (nn.Module): The model.
        moving (iterable of Tensor): Its entries that are to change.
    """
    moving_ids = set(map(id, moving))
    before = [(value, value.detach().clone())
              for value in itertools.chain(model.buffers(), (
                  each for each in model.parameters()
                  if not each.requires_grad))
              if id(value) not in moving_ids]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, kept in before:
                value.copy_(kept)
