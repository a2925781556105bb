"""The seal of published weights: a format version and a hash of every entry.

``torch.save`` writes checksums, but ``torch.load`` does not verify them: a
flipped bit in a weight would go unnoticed. The seal finds damage, and what
was edited without it; it is no signature: who can write a file can seal it.
"""
import hashlib
from typing import Any, Dict, Optional

import torch
from torch import Tensor

from .errors import CheckpointError
from .keys import FORMAT, READABLE_FORMATS, is_stored

_PARTS = ('format', 'meta_digest', 'digest')


def digest(entries: Dict[str, Tensor]) -> bytes:
    """SHA-256 of names, dtypes, shapes and values, whatever their order."""
    sha = hashlib.sha256()
    for key in sorted(entries):
        value = entries[key]
        sha.update(f'{key} {value.dtype} {tuple(value.shape)}\n'.encode())
        sha.update(bytes_of(value))
    return sha.digest()


def bytes_of(value: Tensor) -> memoryview:
    """The elements of a tensor in order, as they are in memory."""
    value = value.detach().cpu().flatten()
    if value.stride(0) != 1:  # also of one element only
        value = value.clone(memory_format=torch.contiguous_format)
    return value.view(torch.uint8).numpy().data


def digest_of_meta(meta: Any) -> bytes:
    """SHA-256 of metadata of primitive types, lists, tuples and dicts."""
    return hashlib.sha256(repr(_ordered(meta)).encode()).digest()


def _ordered(value: Any):
    """The same in an order that does not depend on insertion."""
    if isinstance(value, dict):
        return 'dict', sorted((repr(key), _ordered(item))
                              for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [_ordered(item) for item in value]
    return repr(value)


def seal(state_dict: Dict[str, Tensor], name: str,
         meta: Optional[dict] = None) -> None:
    """Add the seal to a state dict, as the last change to it.

    Args:
        state_dict (dict[str, Tensor]): State dict of the whole model; changed
            in place.
        name (str): Under which the entries of the seal are stored.
        meta (dict, optional): What stands beside the state dict in the file;
            the seal covers it. Defaults to None: there is none.

    Examples:
        >>> state_dict = dict(weight=torch.ones(2))
        >>> seal(state_dict, 'seal')
        >>> list(state_dict)
        ['weight', 'seal.format', 'seal.digest']
        >>> open_seal(state_dict, '', 'seal')
        >>> list(state_dict)
        ['weight']
    """
    state_dict[f'{name}.format'] = torch.tensor(FORMAT)
    if meta is not None:
        state_dict[f'{name}.meta_digest'] = _as_tensor(digest_of_meta(meta))
    state_dict[f'{name}.digest'] = _as_tensor(digest(state_dict))


def _as_tensor(sha: bytes) -> Tensor:
    return torch.tensor(list(sha), dtype=torch.uint8)


def is_sealed(state_dict: dict, prefix: str, name: str) -> bool:
    """Whether some part of a seal is there."""
    return any(f'{prefix}{name}.{part}' in state_dict for part in _PARTS)


def open_seal(state_dict: Dict[str, Tensor], prefix: str, name: str) -> None:
    """Verify and remove the seal; training checkpoints have none.

    Args:
        state_dict (dict[str, Tensor]): Changed in place, where all is well.
        prefix (str): Prefix of the model's entries in the state dict.
        name (str): As given to :func:`seal`.

    Raises:
        CheckpointError: The format is unknown, or an entry was changed.
    """
    if not is_sealed(state_dict, prefix, name):
        return
    entries = {key[len(prefix):]: value for key, value in state_dict.items()
               if key.startswith(prefix)}
    version = entries.get(f'{name}.format')
    if is_stored(version) and version.numel() == 1 \
            and version.tolist() not in READABLE_FORMATS:
        raise CheckpointError(
            f'the checkpoint is of format {version.tolist()}, this gdrq_mm '
            f'reads format {READABLE_FORMATS[0]} to {FORMAT}. Nothing was '
            'loaded; install the gdrq_mm that published it '
            '(meta["gdrq_mm_version"] of the checkpoint) or a later one.')
    # Sizes first: to hash what is only claimed would take its memory.
    stored = entries.pop(f'{name}.digest', None)
    if version is None or not all(map(is_stored, [stored, *entries.values()])
                                  ) or not _is_equal(stored, digest(entries)):
        raise CheckpointError(
            'the checkpoint is damaged: the hash inside does not fit its '
            'weights. Nothing was loaded; copy or download it again (its '
            'name ends in the first 8 digits of its SHA-256).')
    for part in _PARTS:
        state_dict.pop(f'{prefix}{name}.{part}', None)


def check_meta(meta: Any, state_dict: dict, name: str) -> None:
    """Compare metadata with what the seal of the state dict says of it.

    Args:
        meta: What stands beside the state dict.
        state_dict (dict): With its seal.
        name (str): As given to :func:`seal`.

    Raises:
        CheckpointError: It was changed.
    """
    stored = state_dict.get(f'{name}.meta_digest')
    if stored is not None and not (is_stored(stored) and _is_equal(
            stored, digest_of_meta(meta))):
        raise CheckpointError(
            'the hash inside does not fit its metadata. It was changed or '
            'damaged: copy or download it again')


def _is_equal(stored: Tensor, sha: bytes) -> bool:
    return stored.dtype == torch.uint8 and torch.equal(
        stored.cpu(), _as_tensor(sha))
