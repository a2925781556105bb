"""Whether two models compute the same, bit for bit, module by module."""
import contextlib
import copy
import hashlib
import itertools
import random
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..checkpoint import bytes_of
from ..modes import eval_mode
from .evaluating import in_this_process
from .scopes import example_batch, image_channels, scope_of

DEFAULT_SIZE = (224, 224)


def batch_to_try(cfg: Config) -> dict:
    """Two images for ``model.test_step``: of the test data, or a random one
    where they are not there.

    Args:
        cfg (Config): With a ``test_dataloader``, as a rule.
    """
    loader = copy.deepcopy(cfg.get('test_dataloader'))
    if loader is not None:
        loader = dict(in_this_process(loader), batch_size=2)
        # Whatever is missing: files, packages, a network.
        with contextlib.suppress(Exception):
            return next(iter(Runner.build_dataloader(loader, seed=0)))
    return example_batch(scope_of(cfg), _input_size(loader) or DEFAULT_SIZE,
                         image_channels(cfg))


def _input_size(cfg: Any) -> Optional[Tuple[int, int]]:
    """Height and width that a test pipeline gives, the last one in it."""
    found = None
    if isinstance(cfg, dict):
        for key in ('crop_size', 'scale'):
            size = cfg.get(key)
            if isinstance(size, int):
                found = (size, size)
            elif isinstance(size, (tuple, list)) and len(size) == 2 and all(
                    isinstance(each, int) for each in size):
                found = tuple(size)[::-1]  # mm says width first
        cfg = list(cfg.values())
    for item in cfg if isinstance(cfg, (list, tuple)) else ():
        found = _input_size(item) or found
    return found


@torch.no_grad()
def outputs_of(model: nn.Module, batch: dict) -> List[Tuple[str, bytes]]:
    """What every module gives in one ``test_step``, as it is called.

    Args:
        model (nn.Module): A model of OpenMMLab; its mode is kept.
        batch (dict): For ``test_step``.

    Returns:
        list[tuple[str, bytes]]: Name of the module and a hash of its output.
    """
    outputs, handles = [], []
    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(
            lambda _, args, output, name=name: outputs.append(
                (name, _hash(output)))))
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    try:
        with eval_mode(model):
            model.test_step(copy.deepcopy(batch))
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def first_difference(ours: List[Tuple[str, bytes]],
                     theirs: List[Tuple[str, bytes]]) -> Optional[str]:
    """Name of the first module whose output differs; None: all are equal."""
    for one, other in itertools.zip_longest(ours, theirs):
        if one != other:
            return (one or other)[0] or 'the model'
    return None


def _hash(output: Any) -> bytes:
    sha = hashlib.blake2b(digest_size=16)
    for tensor in _tensors(output):
        sha.update(f'{tensor.dtype} {tuple(tensor.shape)}'.encode())
        # Weights that were rounded to zero have a sign, those of codes none.
        sha.update(bytes_of(tensor + 0 if tensor.is_floating_point()
                            else tensor))
    return sha.digest()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, BaseDataElement):
        yield from _tensors(dict(value.items()))
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _tensors(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
