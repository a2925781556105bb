"""What the converters of public data sets share.

A converter gets the folder of the unpacked source and an empty folder to write
to. That folder is renamed to OUT when all is written: OUT is never half done,
and is never overwritten. ``conversion.json`` in it says what was found, what
was dropped and why, and has a digest of all files.
"""
import argparse
import hashlib
import json
import os
import shutil
import sys
import tarfile
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence

import cv2
import numpy as np

STAMP = 'conversion.json'
# Of what a converter writes; raise it where the same source gives other files.
VERSION = 1


class ConversionError(RuntimeError):
    """A source that cannot be converted, or an OUT that is something else."""


class Report:
    """Counts of what was found and dropped, in the order of their first use.

    Attributes:
        found (Counter): What -> how many were kept.
        dropped (Counter): What, and why -> how many were not.
    """

    def __init__(self) -> None:
        self.found, self.dropped = Counter(), Counter()

    def __str__(self) -> str:
        lines = [f'found: {count} {what}'
                 for what, count in self.found.items()]
        return '\n'.join(lines + [f'dropped: {count} {what}' for what, count
                                  in self.dropped.items()])


def read_lines(path: Path) -> List[str]:
    """Lines without their ends, carriage returns and empty ones."""
    text = path.read_text(encoding='utf-8', errors='replace')
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_image(path: Path) -> Optional[np.ndarray]:
    """The pixels as they are stored; None where no image can be read.

    Returns:
        np.ndarray: uint8, (height, width) or (height, width, channels).
    """
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError:
        return None
    return cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an image without loss."""
    done, data = cv2.imencode('.png', image)
    assert done
    path.write_bytes(data.tobytes())


def find_root(folder: Path, parts: Sequence[str], what: str) -> Path:
    """The folder, or one at most three below it, that has all ``parts``.

    Raises:
        ConversionError: There is none; names what the best one lacks.
    """
    level, lacks = [folder], list(parts)
    for _ in range(4):
        for root in level:
            missing = [part for part in parts if not (root / part).exists()]
            if not missing:
                return root
            lacks = min(lacks, missing, key=len)
        level = [path for root in level for path in sorted(root.iterdir())
                 if path.is_dir()]
    raise ConversionError(
        f'this is no complete {what}: it lacks {", ".join(lacks)}')


@contextmanager
def unpacked(source: Path, beside: Path) -> Iterator[Path]:
    """The source as a folder; an archive is unpacked and removed again."""
    if source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix='.unpacked-', dir=beside) as to:
        try:
            # Of tar archives: Python before 3.10.12 and 3.11.4 has no filters.
            has_filters = hasattr(tarfile, 'data_filter')
            shutil.unpack_archive(
                source, to, **(dict(filter='data') if has_filters
                               and source.suffix != '.zip' else {}))
        except OSError as error:
            if isinstance(error, shutil.ReadError) or not error.errno:
                raise ConversionError(
                    f'{source} is no archive that can be unpacked '
                    f'({error})') from None
            raise
        except Exception as error:  # zipfile, tarfile, zlib, lzma: their own
            raise ConversionError(
                f'{source} is cut off or damaged '
                f'({type(error).__name__}: {error})') from None
        yield Path(to)


def digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files of a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob('*')):
        if path.is_file() and path.name != STAMP:
            total.update(path.relative_to(folder).as_posix().encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def check(out: Path, dataset: str, options: dict) -> dict:
    """The stamp of a folder that was converted before.

    Raises:
        ConversionError: It is something else, or not complete any more.
    """
    remedy = 'remove it or choose another OUT'
    try:
        stamp = json.loads((out / STAMP).read_text())
        made = (stamp['dataset'], stamp['version'], stamp['options'])
        files = stamp['files']
    except (OSError, ValueError, KeyError, TypeError):
        raise ConversionError(f'{out} exists and was not written by this '
                              f'converter: {remedy}') from None
    if made != (dataset, VERSION, options):
        raise ConversionError(
            f'{out} holds {made[0]}, version {made[1]}, {made[2]}, not '
            f'{dataset}, version {VERSION}, {options}: {remedy}')
    there = sum(path.is_file() for path in out.rglob('*')) - 1
    if there != files:
        raise ConversionError(f'{out} has {there} of its {files} files: '
                              f'{remedy}')
    return stamp


def convert(dataset: str, source: Path, out: Path,
            write: Callable[..., None], **options) -> dict:
    """Convert a data set, unless OUT has it already.

    Args:
        dataset (str): Its name.
        source (Path): Archive or folder, as it is distributed.
        out (Path): Folder to make.
        write (callable): Called with the unpacked source, the folder to
            write to, a :class:`Report` and the options.
        **options: Options of the converter, kept in the stamp.

    Returns:
        dict: The stamp.

    Raises:
        ConversionError: The source is incomplete, or OUT is something else.
    """
    source, out = Path(source), Path(out)
    if os.path.lexists(out):
        stamp = check(out, dataset, options)
        print(f'{out}: complete already, {stamp["files"]} files')
        return stamp
    if not source.exists():
        raise ConversionError(f'there is no {source}')
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f'.{out.name}-', dir=out.parent))
    try:
        report = Report()
        with unpacked(source, out.parent) as folder:
            write(folder, partial, report, **options)
        stamp = dict(
            dataset=dataset, version=VERSION, options=options,
            found=dict(report.found), dropped=dict(report.dropped),
            files=sum(path.is_file() for path in partial.rglob('*')),
            digest=digest(partial))
        (partial / STAMP).write_text(json.dumps(stamp, indent=1) + '\n')
        partial.chmod(0o755)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    print(f'{report}\n{out}: written, {stamp["files"]} files')
    return stamp


def parser(doc: str) -> argparse.ArgumentParser:
    """SOURCE and OUT, which all converters take."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument('source', metavar='SOURCE', type=Path,
                      help='archive or folder, as it is distributed')
    made.add_argument('out', metavar='OUT', type=Path,
                      help='folder to make; nothing is overwritten')
    return made


def run(dataset: str, write: Callable[..., None],
        args: argparse.Namespace) -> None:
    """Convert, as a command: an error is one sentence."""
    try:
        convert(dataset, write=write, **vars(args))
    except (ConversionError, OSError) as error:
        sys.exit(f'{Path(sys.argv[0]).stem}: {error}')
