"""The seal of published weights: a format version and a hash of every entry.

``torch.save`` writes checksums, but ``torch.load`` does not verify them: a
flipped bit in a weight would go unnoticed.
"""
import hashlib
from typing import Dict

import torch
from torch import Tensor

from .keys import FORMAT, is_packed


def digest(entries: Dict[str, Tensor]) -> bytes:
    """SHA-256 of names, dtypes, shapes and values, whatever their order."""
    sha = hashlib.sha256()
    for key in sorted(entries):
        value = entries[key].detach().cpu().contiguous()
        sha.update(f'{key} {value.dtype} {tuple(value.shape)}\n'.encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy())
    return sha.digest()


def seal(state_dict: Dict[str, Tensor], name: str) -> None:
    """Add the seal to a state dict, as the last change to it.

    Args:
        state_dict (dict[str, Tensor]): Of the whole model; changed in place.
        name (str): Under which the two entries of the seal are stored.

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
    state_dict[f'{name}.digest'] = torch.tensor(
        list(digest(state_dict)), dtype=torch.uint8)


def open_seal(state_dict: Dict[str, Tensor], prefix: str, name: str) -> None:
    """Verify and remove the seal; training checkpoints have none.

    Args:
        state_dict (dict[str, Tensor]): Changed in place, where all is well.
        prefix (str): Of the model in the state dict.
        name (str): As given to :func:`seal`.

    Raises:
        RuntimeError: The format is unknown, or an entry was changed.
    """
    entries = {key[len(prefix):]: value for key, value in state_dict.items()
               if key.startswith(prefix)}
    version = entries.get(f'{name}.format')
    stored = entries.pop(f'{name}.digest', None)
    if version is None and stored is None:
        if is_packed(entries):
            raise RuntimeError(
                'the packed checkpoint has no format version: it is damaged, '
                'or was published before gdrq_mm had one. Nothing was loaded; '
                'publish the training checkpoint again.')
        return
    if isinstance(version, Tensor) and version.tolist() != FORMAT:
        raise RuntimeError(
            f'the checkpoint is of format {version.tolist()}, this gdrq_mm '
            f'reads format {FORMAT}. Nothing was loaded; install the gdrq_mm '
            'that published it (meta["gdrq_mm_version"] of the checkpoint) '
            'or a later one.')
    if not _is_digest(stored, entries):
        raise RuntimeError(
            'the checkpoint is damaged: the hash inside does not fit its '
            'weights. Nothing was loaded; copy or download it again (its '
            'name ends in the first 8 digits of its SHA-256).')
    for part in ('format', 'digest'):
        del state_dict[f'{prefix}{name}.{part}']


def _is_digest(stored, entries: dict) -> bool:
    """Whether it is the hash of the entries, all of which are tensors."""
    if not all(isinstance(each, Tensor) for each in [stored,
                                                     *entries.values()]):
        return False
    expected = torch.tensor(list(digest(entries)), dtype=torch.uint8)
    return stored.dtype == torch.uint8 and torch.equal(stored.cpu(), expected)
