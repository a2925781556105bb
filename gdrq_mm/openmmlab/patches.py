"""All that importing gdrq_mm changes in mmengine and torch, in one place.

Call :func:`unpatch_mmengine` to have the process as it was, or set
``GDRQ_MM_PATCHES=off`` in the environment to have it never changed.
"""
import contextlib
import functools
import logging
import os
from typing import Callable, Dict, List

import numpy as np
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, checkpoint_hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.utils import digit_version

from ..writing import write_whole
from .reading import load_from_http, load_from_local

VARIABLE = 'GDRQ_MM_PATCHES'
_undo: Dict[str, Callable] = {}  # what was changed -> how to take it back


def patch_mmengine() -> List[str]:
    """Change what mmengine needs changed; a second call changes nothing.

    Logged once, at level INFO of the logger ``gdrq_mm``, and by GDRQHook.

    Returns:
        list[str]: What is changed, in words.

    Raises:
        ValueError: ``GDRQ_MM_PATCHES`` is neither 'on' nor 'off'.
    """
    asked = os.environ.get(VARIABLE, 'on')
    if asked not in ('on', 'off'):
        raise ValueError(f'{VARIABLE} is {asked!r}, allowed: on, off')
    if asked == 'on' and not _undo:
        _undo.update({
            'configs may inherit from "gdrq_mm::..."':
                _allow_gdrq_mm_configs(),
            'torch.load(weights_only=True) reads the log history in '
            'training checkpoints of mmengine':
                _allow_mmengine_checkpoints(),
            'checkpoints of local files and URLs load without running code '
            'in them, and damaged ones are errors with a remedy':
                _register_loaders(),
            'files are written whole or not at all, and an old checkpoint is '
            'removed after the new one is there':
                _save_before_removing()})
        for change in _undo:
            logging.getLogger('gdrq_mm').info('mmengine: %s', change)
    return active_patches()


def active_patches() -> List[str]:
    """What is changed now, in words."""
    return list(_undo)


def unpatch_mmengine() -> None:
    """Take back what :func:`patch_mmengine` changed."""
    for undo in _undo.values():
        undo()
    _undo.clear()


def _statistics_method(cls: type, name: str):
    """``getattr``, but only for what a pickled HistoryBuffer asks of it."""
    if cls is not HistoryBuffer or name not in ('min', 'max', 'mean',
                                                'current'):
        raise ValueError(f'the checkpoint asks for {name!r} of {cls!r}, which '
                         'no mmengine log history needs; do not trust it')
    return getattr(cls, name)


def _allow_mmengine_checkpoints() -> Callable:
    """Let ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    Training checkpoints of mmengine 0.10 hold log histories: HistoryBuffer
    objects of numpy arrays. torch >= 2.6 refuses them by default, which
    breaks ``--resume`` and the test tools. All that is allowed here is plain
    data; ``getattr``, which HistoryBuffer's pickle names as well, is replaced
    by a function that gives nothing else.
    """
    if digit_version(torch.__version__) < digit_version('2.6'):
        return lambda: None  # loads everything by default
    core = np._core if hasattr(np, '_core') else np.core
    plain = [HistoryBuffer, np.ndarray, np.dtype]
    plain += {type(np.dtype(kind)) for kind in '?bhilqBHILQefd'}
    # By the names that numpy 1 and numpy 2 write.
    renamed = [(getattr(core.multiarray, name), f'{module}.multiarray.{name}')
               for name in ('_reconstruct', 'scalar')
               for module in ('numpy.core', 'numpy._core')]
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(
        [*plain, *renamed, (_statistics_method, 'builtins.getattr')])

    def undo():
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)

    return undo


def _allow_gdrq_mm_configs() -> Callable:
    """Let configs inherit from ours: ``_base_ = 'gdrq_mm::...'``.

    mmengine looks for external configs in the packages of a table only, and
    takes a package's name for the registry scope of all that its configs
    name. Ours name modules of mmdet, mmseg and mmpretrain, as the user's own
    do: they have no scope.
    """
    MODULE2PACKAGE['gdrq_mm'] = 'gdrq_mm'
    find = Config._get_cfg_path

    def find_without_scope(cfg_path: str, filename: str):
        path, scope = find(cfg_path, filename)
        return path, None if scope == 'gdrq_mm' else scope

    Config._get_cfg_path = staticmethod(find_without_scope)

    def undo():
        Config._get_cfg_path = staticmethod(find)
        del MODULE2PACKAGE['gdrq_mm']

    return undo


def _register_loaders() -> Callable:
    """For local files and URLs, and for the names that mmengine looks up as
    URLs (``torchvision://``, ``open-mmlab://``, ``mmcls://``), in all that
    loads by mmengine: ``load_from``, ``init_cfg``, ``--resume``, the test
    tools, the inferencers. Its storage backends (``s3://`` and the like) stay
    as they are.
    """
    schemes, from_http = (dict(CheckpointLoader._schemes),
                          mmengine_checkpoint.load_from_http)
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_from_http,
                                     force=True)
    mmengine_checkpoint.load_from_http = load_from_http  # of such names

    def undo():
        for scheme in ('', 'http://', 'https://'):
            CheckpointLoader.register_scheme(scheme, schemes[scheme],
                                             force=True)
        mmengine_checkpoint.load_from_http = from_http

    return undo


def _save_before_removing() -> Callable:
    """mmengine empties a file, then writes it, and its CheckpointHook removes
    the checkpoint before the last one that it keeps before it saves the next:
    killed meanwhile, a run with ``max_keep_ckpts=1`` has none left.
    """
    put, save_step, save_best = (
        LocalBackend.put, CheckpointHook._save_checkpoint_with_step,
        CheckpointHook._save_best_checkpoint)

    def put_whole(self, obj: bytes, filepath) -> None:
        with write_whole(filepath, overwrite=True) as part:
            part.write_bytes(obj)

    LocalBackend.put = put_whole
    CheckpointHook._save_checkpoint_with_step = _removing_last(save_step)
    CheckpointHook._save_best_checkpoint = _removing_last(save_best)
    # For ``last_checkpoint``, which names the one to resume from.
    checkpoint_hook.open = _open_whole

    def undo():
        LocalBackend.put = put
        CheckpointHook._save_checkpoint_with_step = save_step
        CheckpointHook._save_best_checkpoint = save_best
        del checkpoint_hook.open

    return undo


class _RemovesLast:
    """A file backend whose removals wait."""

    def __init__(self, backend) -> None:
        self.backend = backend
        self.waiting = []  # (function, path)

    def __getattr__(self, name: str):
        return getattr(self.backend, name)

    def remove(self, path) -> None:
        self.waiting.append((self.backend.remove, path))

    def rmtree(self, path) -> None:
        self.waiting.append((self.backend.rmtree, path))


def _removing_last(save: Callable) -> Callable:
    """A method of CheckpointHook that removes when it has saved."""

    @functools.wraps(save)
    def wrapped(self, *args, **kwargs):
        self.file_backend = waiting = _RemovesLast(self.file_backend)
        try:
            result = save(self, *args, **kwargs)
        finally:
            self.file_backend = waiting.backend
        kept = {self.last_ckpt, getattr(self, 'best_ckpt_path', None),
                *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for remove, path in waiting.waiting:
            if path not in kept:  # written anew under the same name
                remove(path)
        return result

    return wrapped


@contextlib.contextmanager
def _open_whole(path, mode: str):
    with write_whole(path, overwrite=True) as part, open(part, mode) as file:
        yield file
