"""How mmengine reads checkpoint files: no code, and errors that teach.

mmengine leaves URLs to ``torch.hub``, which loads them with
``weights_only=False``: code in them runs; the maintained forks do so wherever
``weights_only=True`` fails. For a file that cannot be read torch names
neither the file nor a remedy, and for one with code in it suggests
``weights_only=False`` as well. The checksums that ``torch.save`` writes it
does not verify.

That code is not run needs torch >= 2.6: older versions run it in every file
that they read.
"""
import errno
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from types import FrameType
from typing import IO, Any, Optional
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import print_log
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from ..checkpoint import (
    NAME,
    CheckpointError,
    check_container,
    check_meta,
    has_load_gate,
    open_verified,
)
from .plain_types import RESTRICTED, allow_plain_types

PACKAGES = ('mmdet', 'mmpretrain', 'mmseg')
_OF_NO_USE = (
    'a float model takes its float weights without bits and thresholds, or, '
    'where they are packed, none at all. Load it into a quantized model '
    '(load_from), or give the float weights alone, see '
    'gdrq_mm.checkpoint.float_weights')


def load_from_local(filename: str, map_location=None):
    """mmengine's loader of local files, with one kind of error.

    Sizes are verified before anything is read, checksums while it is; of
    published files also the hash of the metadata.

    Args:
        filename (str): Path of the checkpoint.
        map_location: As ``torch.load`` takes it.

    Raises:
        OSError: It cannot be opened or read.
        MemoryError, torch.cuda.OutOfMemoryError: It does not fit.
        CheckpointError: It is damaged, names what is no plain data, or is not
            for this machine.
    """
    path = os.path.expanduser(filename)
    try:
        with open_verified(path) as file:
            content = _load(file, map_location)
        if isinstance(content, dict):
            weights = content.get('state_dict')
            if isinstance(weights, dict):
                check_meta(content.get('meta'), weights, NAME)
        return content
    except Exception as error:  # torch has many
        if _is_of_the_machine(error):
            raise
        raise CheckpointError(f'{filename} cannot be read: '
                              f'{_reason(error, path)} Nothing was loaded.'
                              ) from None


def _load(file: IO[bytes], map_location) -> Any:
    allow_plain_types()  # forks take them back after each of their loads
    options = dict(weights_only=True) if RESTRICTED else {}
    return torch.load(file, map_location=map_location, **options)


def _is_of_the_machine(error: Exception) -> bool:
    """Whether it says nothing of what is in the file."""
    if type(error) is OSError:  # sizes in a damaged file lead nowhere
        return error.errno not in (None, errno.EINVAL)
    return isinstance(error, (OSError, MemoryError,
                              torch.cuda.OutOfMemoryError))


def path_of(filename: str) -> Optional[Path]:
    """Where a file is on this machine, after a download; None: elsewhere."""
    if filename.startswith(('http://', 'https://')):
        return (Path(torch.hub.get_dir()) / 'checkpoints'
                / Path(urlparse(filename).path).name)
    path = Path(os.path.expanduser(filename))
    return path if path.is_file() else None


def load_from_http(filename: str, map_location=None):
    """Download a checkpoint to torch's cache, once, and load that file.

    Args:
        filename (str): URL of the checkpoint.
        map_location: As ``torch.load`` takes it.

    Raises:
        OSError: It cannot be downloaded.
        CheckpointError: As :func:`load_from_local`.
    """
    return load_from_local(str(download(filename)), map_location)


def download(filename: str) -> Path:
    """The file behind a URL, in torch's cache; by the first rank."""
    path = path_of(filename)

    def fetch():
        if not path.exists():
            print_log(f'Downloads {filename} to {path}', 'current')
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(filename, str(path))

    rank, world_size = get_dist_info()
    if rank == 0:
        fetch()
    if world_size > 1:
        barrier()
        fetch()  # on other machines
    return path


def _reason(error: Exception, path: str) -> str:
    """What is wrong, and what to do about it."""
    text = str(error).strip()
    named = re.search(r'GLOBAL (\S+)', text)
    if named:
        return (f'it asks for {named[1]}, which is no plain data. It holds '
                'code, which was not run, or objects of a training, or it is '
                'damaged. Get it as plain tensors, or allow what you trust by '
                'torch.serialization.add_safe_globals.')
    if 'Attempting to deserialize' in text or _is_intact(path):
        if isinstance(error, pickle.UnpicklingError):
            text = re.split(r'WeightsUnpickler error:\s*', text)[-1]
        elif not isinstance(error, (RuntimeError, ValueError)):
            text = repr(error)  # of some only a word is said
        return text.partition('\n')[0].rstrip('.') + '.'
    said = re.split(r'\n|\. ', text)[0].rstrip('.')
    if type(error) not in (RuntimeError, ValueError, CheckpointError):
        # Said to programmers.
        said = 'it is not an intact file of torch.save'
    return (f'{said}. It may be cut off or damaged: remove it, and copy or '
            'download it again.')


def _is_intact(path: str) -> bool:
    """Whether all is there and has the checksums that were written."""
    try:
        check_container(path)
    except Exception as error:  # of zipfile and zlib, which has many as well
        if _is_of_the_machine(error):
            raise
        return False
    return zipfile.is_zipfile(path)


def check_own_loading(content: Any, filename: str,
                      reader: FrameType) -> None:
    """Look at who reads a quantized model's file, where it is not mmengine.

    What becomes of it is not seen: Swin and others change names and call
    torch's ``load_state_dict(strict=False)``, which takes what it knows. A
    float module of the packages must not; other code is warned.

    Args:
        content: Content of the file.
        filename (str): As it was given.
        reader (FrameType): What called mmengine's ``CheckpointLoader``.

    Raises:
        CheckpointError: A float module of the packages reads it.
    """
    frame: Optional[FrameType] = reader
    if reader.f_code.co_name == '_load_checkpoint':  # mmengine's short form
        frame = reader.f_back
    code = frame.f_globals.get('__name__', '') if frame else ''
    if code.partition('.')[0] in ('mmengine', 'gdrq_mm') \
            or not isinstance(content, dict):
        return
    weights = content.get('state_dict', content)
    if not isinstance(weights, dict) or not any(
            str(key).endswith(f'{NAME}.schemes') for key in weights):
        return
    module = frame.f_locals.get('self') if frame else None
    if isinstance(module, nn.Module) and '_modules' in vars(module):
        if any(map(has_load_gate, module.modules())):
            return
        if code.partition('.')[0] in PACKAGES:
            raise CheckpointError(
                f'{filename} is of a quantized model, and {code} loads it '
                f'into a {type(module).__name__} that is float: '
                f'{_OF_NO_USE}. Nothing was loaded.')
    warnings.warn(
        f'{filename} is of a quantized model, and {code} loads it by itself: '
        f'{_OF_NO_USE}')


def weights_of(content: dict) -> dict:
    """The weights in the content of a checkpoint.

    Args:
        content (dict): From :func:`read_checkpoint`: of a training, or the
            weights themselves.

    Returns:
        dict: By name, without the ``module.`` that wrappers of several GPUs
        put in front.
    """
    weights = {str(key): value for key, value in
               content.get('state_dict', content).items()}
    strip_wrapper_prefix(weights)
    return weights


def strip_wrapper_prefix(weights: dict) -> None:
    """Take ``module.``, which wrappers of several GPUs put in front of names,
    away in place, as mmengine does where it loads weights itself."""
    for key in list(weights):  # in their order
        weights[str(key).removeprefix('module.')] = weights.pop(key)


def read_checkpoint(path: str) -> dict:
    """The content of a checkpoint, on the CPU.

    Args:
        path (str): A file, or a URL as mmengine takes it.

    Raises:
        ValueError: It holds no dict.
        OSError, RuntimeError: It cannot be read.
    """
    content = mmengine_checkpoint._load_checkpoint(path, map_location='cpu')
    if not isinstance(content, dict):
        raise ValueError(f'{path} is no checkpoint: it holds a '
                         f'{type(content).__name__}, expected a dict with a '
                         "'state_dict'")
    return content
