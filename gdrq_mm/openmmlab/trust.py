"""Whose configs are run: those inside checkpoint files are code.

A config is Python, and one of literals alone builds any registered or
importable type with any arguments. mmengine runs the config inside a file
where a model is opened by its weights alone, and on ``resume`` a
``meta['config']`` as MMCV 1 wrote it. Here it does so for files that the user
has named.
"""
import hashlib
import os
from pathlib import Path
from typing import Any, Optional

from mmengine.logging import print_log

from ..checkpoint import CheckpointError

VARIABLE = 'GDRQ_MM_TRUST'


def sha256_of(path: str) -> str:
    """SHA-256 of a file, as ``sha256sum`` prints it."""
    sha = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(2**20), b''):
            sha.update(block)
    return sha.hexdigest()


def is_trusted(sha256: Optional[str]) -> bool:
    """Whether the environment names a file, or all of them.

    Args:
        sha256 (str, optional): SHA-256 of the file; None for one that is not
            on this machine.

    Raises:
        ValueError: What it names is no SHA-256.
    """
    named = os.environ.get(VARIABLE, '').replace(',', ' ').lower().split()
    for each in named:
        if each != 'all' and (len(each) != 64 or set(each) - set(
                '0123456789abcdef')):
            raise ValueError(
                f'{VARIABLE} has {each!r}, allowed: SHA-256 digests of 64 '
                'hexadecimal digits, separated by commas, or all')
    return 'all' in named or sha256 in named


def check_config_inside(weights: str, path: Optional[Path]) -> None:
    """Refuse to run the config inside a file that nobody named.

    Args:
        weights (str): The file, as it was given.
        path (Path, optional): Where it is on this machine.

    Raises:
        CheckpointError: It is not trusted.
    """
    sha256 = sha256_of(str(path)) if path else None
    if not is_trusted(sha256):
        named = f'{VARIABLE}={sha256}' if sha256 else \
            f'a downloaded file, and {VARIABLE}=SHA256'
        raise CheckpointError(
            f'{weights} is opened without a config, and the one inside it is '
            'code that would run. Give the config published with it as the '
            'model. If you trust who made the file, you may name it in the '
            f'environment: {named} ({VARIABLE}=all: every file). Nothing was '
            'loaded.')


def without_config(content: Any, filename: str, path: Optional[Path]) -> Any:
    """A checkpoint without ``meta['config']``, which mmengine runs on resume.

    mmengine itself writes none.

    Args:
        content: Content of the file.
        filename (str): As it was given.
        path (Path, optional): Where it is on this machine.
    """
    meta = content.get('meta') if isinstance(content, dict) else None
    if not isinstance(meta, dict) or 'config' not in meta or is_trusted(
            sha256_of(str(path)) if path else None):
        return content
    print_log(f"{filename}: meta['config'] is left out, it would run on "
              f'resume (see {VARIABLE})', 'current')
    meta = {key: value for key, value in meta.items() if key != 'config'}
    return {**content, 'meta': meta}
