"""Files that are there whole or not at all, whatever happens meanwhile.

A file is written under another name in the same folder, brought to the disk,
and only then gets its name. What a killed process leaves behind is hidden
(``.NAME.*.part``) and never read.
"""
import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import Any, Iterator, Union

import torch

_FULL = 'Make room, or choose another folder'
_CLOSED = 'Choose a folder that you may write to'
_REMEDIES = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EFBIG: _FULL,
             errno.EACCES: _CLOSED, errno.EPERM: _CLOSED,
             errno.EROFS: _CLOSED}


def check_new(path: Union[str, Path]) -> None:
    """Refuse a name that is taken, before the work for its file begins.

    Raises:
        FileExistsError: There is a file of that name.
    """
    if os.path.lexists(path):
        raise _exists(Path(path))


@contextlib.contextmanager
def write_whole(path: Union[str, Path],
                overwrite: bool = False) -> Iterator[Path]:
    """Where to write a file that gets its name when all of it is written.

    Args:
        path (str or Path): The file; its folder is made if missing.
        overwrite (bool): Whether it may take the place of a file of that
            name. Defaults to False.

    Yields:
        Path: The file to write instead. After an exception it is removed, and
        ``path`` is as it was.

    Raises:
        FileExistsError: There is a file of that name, also where another
            process wrote it in the meantime.
        OSError: It could not be written; the message names ``path``.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with write_whole(folder / 'a.txt') as part:
        ...     _ = part.write_text('all of it')
        >>> [path.name for path in folder.iterdir()]
        ['a.txt']
    """
    path = Path(path)
    if not overwrite:
        check_new(path)
    if overwrite:
        path = Path(os.path.realpath(path))  # a link stays one
    part = path.with_name(f'.{path.name[:200]}.{secrets.token_hex(6)}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            _to_disk(part)
            if overwrite:
                os.replace(part, path)
            else:
                _give_name(part, path)
            _to_disk(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None or not _is_about(error, part, path):
            raise
        raise OSError(
            error.errno, f'{path} was not written: '
            f'{os.strerror(error.errno)}. {remedy}; nothing else was changed'
        ) from None


def _is_about(error: OSError, *paths: Path) -> bool:
    """Not about another file, which the body reads or writes, and not in
    words of its own, as those of a file that is written inside of it."""
    if error.filename is None:
        return error.strerror == os.strerror(error.errno or 0)
    return isinstance(error.filename, (str, bytes, os.PathLike)) and any(
        Path(os.fsdecode(error.filename)) in (path, *path.parents)
        for path in paths)


def save_whole(content: Any, path: Union[str, Path],
               overwrite: bool = False) -> None:
    """``torch.save`` of a file that is there whole or not at all.

    Args:
        content: What ``torch.save`` takes.
        path (str or Path): As for :func:`write_whole`, as its errors are.
        overwrite (bool): As for :func:`write_whole`.
    """
    with write_whole(path, overwrite) as part, open(part, 'wb') as file:
        # To a path, torch reports a full disk in words of its zip writer.
        torch.save(content, file)


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if not path.is_dir():  # Windows opens no folders
            raise
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _give_name(part: Path, path: Path) -> None:
    """Rename, but never onto a file that is there."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError:  # a file system without links
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise _exists(path) from None
        try:
            os.replace(part, path)
        except OSError:
            path.unlink()  # of no bytes, and ours
            raise


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(f'{path} exists; remove it or choose another name')
