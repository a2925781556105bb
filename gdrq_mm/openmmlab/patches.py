"""All that importing gdrq_mm changes of other packages, in one place.

Call :func:`unpatch_mmengine` to have their functions as they were, or set
``GDRQ_MM_PATCHES=off`` in the environment to have them never changed.
"""
import contextlib
import functools
import logging
import os
import sys
from importlib.metadata import distributions
from importlib.util import find_spec
from typing import Callable, Dict, List

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, checkpoint_hook
from mmengine.infer import BaseInferencer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from ..checkpoint import check_whole, part_of
from ..writing import write_whole
from .checkpoint_watch import watch_quantized_runs
from .plain_types import allow_plain_types
from .reading import (
    check_own_loading,
    download,
    load_from_http,
    load_from_local,
    path_of,
)
from .trust import check_config_inside, without_config
from .wrappers import unwrap

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
        changes = {
            'configs may inherit from "gdrq_mm::...", and from those of a '
            'package whose fork is installed under another name':
                _find_configs,
            'torch.load(weights_only=True) reads the log history in '
            'training checkpoints of mmengine': allow_plain_types,
            'checkpoints of local files and URLs load without running code '
            'in them, and damaged ones are errors with a remedy':
                _register_loaders,
            'the config inside a checkpoint is run for files that '
            'GDRQ_MM_TRUST names only': _distrust_configs,
            'a float model refuses the checkpoint of a quantized one (a '
            'script that reads one gets a warning), and init_cfg loads parts '
            'of one with their schemes': _check_models,
            'files are written whole or not at all, and an old checkpoint is '
            'removed after the new one is there': _save_before_removing,
            'runs of a QuantizedModel without GDRQHook get a hook that looks '
            'at what they save and are resumed from': watch_quantized_runs}
        try:
            for change, patch in changes.items():
                _undo[change] = patch()
                logging.getLogger('gdrq_mm').info('mmengine: %s', change)
        except Exception:
            unpatch_mmengine()  # all of them or none
            raise
    return active_patches()


def active_patches() -> List[str]:
    """What is changed now, in words."""
    return list(_undo)


def unpatch_mmengine() -> None:
    """Take back what :func:`patch_mmengine` changed."""
    for undo in reversed([*_undo.values()]):
        undo()
    _undo.clear()


def _find_configs() -> Callable:
    """Let configs inherit from ours: ``_base_ = 'gdrq_mm::...'``.

    mmengine looks for external configs in the packages of a table only, and
    takes a package's name for the registry scope of all that its configs
    name. Ours name modules of mmdet, mmseg and mmpretrain, as the user's own
    do: they have no scope.

    The table says that pip knows mmseg as mmsegmentation. The maintained fork
    is called otherwise, and mmengine then takes it for missing; the name of a
    module is found as well.
    """
    before = dict(MODULE2PACKAGE)
    MODULE2PACKAGE['gdrq_mm'] = 'gdrq_mm'
    for module, package in before.items():
        if (module != package and find_spec(module) is not None
                and not any(distributions(name=package))):
            MODULE2PACKAGE[module] = module
    find = Config._get_cfg_path

    def find_without_scope(cfg_path: str, filename: str):
        path, scope = find(cfg_path, filename)
        return path, None if scope == 'gdrq_mm' else scope

    Config._get_cfg_path = staticmethod(find_without_scope)

    def undo():
        Config._get_cfg_path = staticmethod(find)
        MODULE2PACKAGE.clear()
        MODULE2PACKAGE.update(before)

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


def _distrust_configs() -> Callable:
    """Where mmengine runs a config that it found in a checkpoint file: in
    inferencers that got no other, and in ``resume`` (``meta['config']``)."""
    init, load = BaseInferencer._init_model, CheckpointLoader.__dict__[
        'load_checkpoint']

    def init_model(self, cfg, weights, *args, **kwargs):
        if not cfg and weights is not None:
            is_url = str(weights).startswith(('http://', 'https://'))
            check_config_inside(
                weights, (download if is_url else path_of)(str(weights)))
        return init(self, cfg, weights, *args, **kwargs)

    def load_checkpoint(cls, filename, *args, **kwargs):
        content = load.__func__(cls, filename, *args, **kwargs)
        return without_config(content, filename, path_of(filename))

    BaseInferencer._init_model = functools.wraps(init)(init_model)
    CheckpointLoader.load_checkpoint = classmethod(load_checkpoint)

    def undo():
        BaseInferencer._init_model = init
        CheckpointLoader.load_checkpoint = load

    return undo


def _check_models() -> Callable:
    """mmengine, and torch with ``strict=False``, load what they find, and
    mmengine only logs what it does not; of the part of a checkpoint that
    ``init_cfg`` asks for, the schemes are left out.
    """
    load, load_part, read, load_any = (
        mmengine_checkpoint.load_state_dict,
        mmengine_checkpoint._load_checkpoint_with_prefix,
        CheckpointLoader.__dict__['load_checkpoint'],
        nn.Module.load_state_dict)

    @functools.wraps(load)
    def load_checked(module, state_dict, *args, **kwargs):
        check_whole(unwrap(module), state_dict)
        return load(module, state_dict, *args, **kwargs)

    @functools.wraps(load_part)
    def load_checkpoint_with_prefix(prefix, filename, map_location=None):
        content = mmengine_checkpoint._load_checkpoint(filename, map_location)
        part = part_of(content.get('state_dict', content),
                       prefix.rstrip('.') + '.')
        assert part, f'{prefix} is not in the pretrained model'
        return part

    def load_checkpoint(cls, filename, *args, **kwargs):
        content = read.__func__(cls, filename, *args, **kwargs)
        check_own_loading(content, filename, sys._getframe(1))
        return content

    @functools.wraps(load_any)
    def load_state_dict(self, state_dict, strict=True, assign=False):
        check_whole(self, state_dict)
        return load_any(self, state_dict, strict, assign)

    nn.Module.load_state_dict = load_state_dict
    CheckpointLoader.load_checkpoint = classmethod(load_checkpoint)
    mmengine_checkpoint.load_state_dict = load_checked
    mmengine_checkpoint._load_checkpoint_with_prefix = \
        load_checkpoint_with_prefix

    def undo():
        nn.Module.load_state_dict = load_any
        mmengine_checkpoint.load_state_dict = load
        mmengine_checkpoint._load_checkpoint_with_prefix = load_part
        CheckpointLoader.load_checkpoint = read

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
        if not hasattr(self, 'file_backend'):  # a validation before training
            return save(self, *args, **kwargs)
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
