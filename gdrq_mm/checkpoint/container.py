"""The zip file that ``torch.save`` writes, verified before torch reads it.

``torch.load`` verifies none of the checksums that are in it, believes what
its pickle says of sizes, and unpacks what claims to be compressed.
"""
import bisect
import contextlib
import io
import os
import pickle
import struct
import zipfile
import zlib
from typing import IO, Iterable, Iterator, List, Set

from .errors import CheckpointError

# Bytes an element, by the names of torch's typed storages; others count bytes.
_ITEM_SIZES = dict(Half=2, BFloat16=2, Short=2, Float=4, Int=4, QInt32=4,
                   Double=8, Long=8, ComplexFloat=8, ComplexDouble=16)


_HEADER = 30  # bytes in front of the name and the content of a part
_LENGTHS = struct.Struct('<26xHH')  # of the name and what follows it
_PIECE = 2**18  # bytes read at once: they stay in the cache


@contextlib.contextmanager
def open_verified(path: str) -> Iterator[IO[bytes]]:
    """Open a file for ``torch.load``; what is read is verified on the way.

    That tensors are no larger than their parts of the file is verified before,
    checksums of tensors while they are read, and of those that were not read
    at the end. Files of torch's old format have neither.

    Args:
        path (str): Path of a file.

    Raises:
        CheckpointError: A checksum or a size is wrong.
        OSError: It cannot be read.
        zipfile.BadZipFile, ...: What zipfile and pickle raise of damaged ones.
    """
    if not zipfile.is_zipfile(path):
        with open(path, 'rb') as plain:
            yield plain
        return
    with _Verified(path) as file, zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts) \
                or sum(part.file_size for part in parts) > os.path.getsize(
                    path):
            raise CheckpointError('its parts claim to be larger than it is')
        file.expect(parts)
        sizes = {part.filename.partition('/')[2]: part.file_size
                 for part in parts}
        file.verify(part for part in parts
                    if '/data/' not in part.filename)
        for part in parts:
            if part.filename.endswith('/data.pkl'):
                _check_storages(io.BytesIO(archive.read(part)), sizes)
        file.seek(0)
        yield file
        file.verify(parts)


def check_container(path: str) -> None:
    """Verify all that :func:`open_verified` does."""
    with open_verified(path):
        pass


class _Verified(io.FileIO):
    """A zip file that knows which of its parts had the right checksum.

    Not ``ZipFile.testzip``: what torch reads would be read twice.
    """

    def expect(self, parts: List[zipfile.ZipInfo]) -> None:
        """Begin to compare what is read with the checksums of parts.

        Raises:
            CheckpointError: Two parts are said to be in one place.
        """
        self.parts = sorted(parts, key=lambda part: part.header_offset)
        self.starts = [part.header_offset for part in self.parts]
        if len(set(self.starts)) < len(parts):
            raise CheckpointError('two of its parts begin at one place')
        self.verified: Set[int] = set()  # header offsets

    def readinto(self, buffer) -> int:
        """torch reads the content of a part by one call."""
        place, size = self.tell(), len(buffer)
        at = bisect.bisect(self.starts, place - _HEADER) - 1
        if at < 0 or self.parts[at].file_size != size:
            return super().readinto(buffer)
        return self._read(self.parts[at], memoryview(buffer))

    def verify(self, parts: Iterable[zipfile.ZipInfo]) -> None:
        """Read the parts that are not verified.

        Raises:
            CheckpointError: The checksum of one is wrong.
        """
        buffer = None
        for part in parts:
            if part.header_offset in self.verified:
                continue
            self.seek(part.header_offset)
            header = self.read(_HEADER)
            if len(header) < _HEADER:
                raise CheckpointError(f'its part {part.filename} is cut off')
            # The lengths of its name and of its extra field.
            self.seek(sum(_LENGTHS.unpack(header)), os.SEEK_CUR)
            buffer = buffer or memoryview(bytearray(_PIECE))
            left = part.file_size - self._read(part, buffer)
            if left:
                raise CheckpointError(f'its part {part.filename} is cut off')
            if part.header_offset not in self.verified:
                raise CheckpointError(
                    f'the checksum of its part {part.filename} is wrong')

    def _read(self, part: zipfile.ZipInfo, buffer: memoryview) -> int:
        """Read a part, into a buffer that holds it or piece by piece.

        Returns:
            int: Bytes read.
        """
        checksum = done = 0
        whole = len(buffer) >= part.file_size
        while done < part.file_size:
            begin = done if whole else 0
            size = min(_PIECE, part.file_size - done)
            number = super().readinto(buffer[begin:begin + size])
            if not number:
                break
            checksum = zlib.crc32(buffer[begin:begin + number], checksum)
            done += number
        if done == part.file_size and checksum == part.CRC:
            self.verified.add(part.header_offset)
        return done


def _check_storages(file, sizes: dict) -> None:
    reader = _StorageReader(file)
    reader.load()
    for kind, key, numel in reader.storages:
        size = sizes.get(f'data/{key}')
        if size is None or kind.itemsize * numel != size:
            raise CheckpointError(
                f'a tensor claims {kind.itemsize * numel} bytes, its part of '
                f'the file has {size or 0}')


class _StorageReader(pickle._Unpickler):
    """Collects what a pickle says of storages; makes and runs nothing.

    That of pure Python, which needs no memory for what a pickle claims.
    """

    def __init__(self, file) -> None:
        super().__init__(file, encoding='utf-8')
        self.storages = []  # (kind, key, number of elements)

    def find_class(self, module: str, name: str) -> type:
        return type(name, (_Anything, ), dict(
            itemsize=_ITEM_SIZES.get(name.replace('Storage', ''), 1)))

    def persistent_load(self, saved: tuple) -> '_Anything':
        _, kind, key, _, numel = saved
        if not (isinstance(kind, type) and issubclass(kind, _Anything)
                and type(numel) is int and numel >= 0):
            raise pickle.UnpicklingError('a storage is described otherwise '
                                         'than torch does')
        self.storages.append((kind, key, numel))
        return _Anything()


class _Anything:
    """Stands for every object of a pickle; takes all and does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs) -> None:
        pass

    def __call__(self, *args, **kwargs) -> '_Anything':
        return self

    def __setitem__(self, key, value) -> None:
        pass

    append = extend = add = update = __setstate__ = __call__
