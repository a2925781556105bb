"""The zip file that ``torch.save`` writes, verified before torch reads it.

``torch.load`` verifies none of the checksums that are in it, believes what
its pickle says of sizes, and unpacks what claims to be compressed.
"""
import io
import os
import pickle
import struct
import zipfile
import zlib

from .errors import CheckpointError

# Bytes an element, by the names of torch's typed storages; others count bytes.
_ITEM_SIZES = dict(Half=2, BFloat16=2, Short=2, Float=4, Int=4, QInt32=4,
                   Double=8, Long=8, ComplexFloat=8, ComplexDouble=16)


# In front of a part: the lengths of its name and of its extra field.
_HEADER = struct.Struct('<26xHH')


def check_container(path: str) -> None:
    """Checksums of all parts, and that tensors are no larger than they.

    Files of torch's old format have neither.

    Args:
        path (str): Path of a file.

    Raises:
        CheckpointError: A checksum or a size is wrong.
        OSError: It cannot be read.
        zipfile.BadZipFile, ...: What zipfile and pickle raise of damaged ones.
    """
    if not zipfile.is_zipfile(path):
        return
    with open(path, 'rb', buffering=0) as file, \
            zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts) \
                or sum(part.file_size for part in parts) > os.path.getsize(
                    path):
            raise CheckpointError('its parts claim to be larger than it is')
        # Not ``testzip``: it takes twice the time.
        buffer = memoryview(bytearray(2**18))
        for part in parts:
            if _checksum(file, part, buffer) != part.CRC:
                raise CheckpointError(
                    f'the checksum of its part {part.filename} is wrong')
        sizes = {part.filename.partition('/')[2]: part.file_size
                 for part in parts}
        for part in parts:
            if part.filename.endswith('/data.pkl'):
                _check_storages(io.BytesIO(archive.read(part)), sizes)


def _checksum(file, part: zipfile.ZipInfo, buffer: memoryview) -> int:
    """CRC-32 of the bytes that torch takes for a stored part."""
    file.seek(part.header_offset)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise CheckpointError(f'its part {part.filename} is cut off')
    file.seek(sum(_HEADER.unpack(header)), os.SEEK_CUR)
    checksum, left = 0, part.file_size
    while left:
        number = file.readinto(buffer[:left])
        if not number:
            raise CheckpointError(f'its part {part.filename} is cut off')
        checksum = zlib.crc32(buffer[:number], checksum)
        left -= number
    return checksum


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
