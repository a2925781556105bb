"""The zip file around a checkpoint: checksums and sizes before torch reads."""
import io
import random
import struct
import zipfile
import zlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gdrq_mm.checkpoint import (
    CheckpointError,
    check_container,
    container,
    open_verified,
)


@pytest.fixture
def checkpoint(tmp_path):
    """A file as a training writes it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), .1, momentum=.9)
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(meta=dict(epoch=1, names=('a', 'b')),
                    state_dict=model.state_dict(),
                    optimizer=optimizer.state_dict()), path)
    return path


def rewritten(path, change, **options):
    """The same archive with parts changed and right checksums."""
    content = io.BytesIO()
    with zipfile.ZipFile(path) as old, \
            zipfile.ZipFile(content, 'w', **options) as new:
        for part in old.infolist():
            new.writestr(part.filename, change(part.filename,
                                               old.read(part.filename)))
    path.write_bytes(content.getvalue())


def test_what_torch_writes_is_accepted(checkpoint, tmp_path):
    check_container(str(checkpoint))
    tensors = [torch.zeros(3, dtype=dtype) for dtype in (
        torch.bool, torch.uint8, torch.int16, torch.long, torch.half,
        torch.bfloat16, torch.double, torch.complex64)]
    shared = torch.arange(10.)
    for content in (tensors, [shared[2:4], shared[::3]], torch.empty(0),
                    dict(a=torch.zeros(2).expand(5, 2)), 'text',
                    torch.nn.Parameter(shared), torch.Size([1, 2])):
        torch.save(content, tmp_path / 'other.pth')
        check_container(str(tmp_path / 'other.pth'))
    torch.save(tensors, tmp_path / 'old.pth',
               _use_new_zipfile_serialization=False)
    check_container(str(tmp_path / 'old.pth'))


def load(path):
    with open_verified(path) as file:
        return torch.load(file, weights_only=True)


@pytest.mark.parametrize('read', [check_container, load])
def test_a_flipped_bit_in_any_part_of_a_training_checkpoint_is_found(
        checkpoint, read):
    content = checkpoint.read_bytes()
    with zipfile.ZipFile(checkpoint) as archive:
        parts = archive.infolist()
    generator = random.Random(0)
    for part in parts:
        if not part.file_size:
            continue
        name, start = part.filename, part.header_offset
        place = start + 30 + sum(struct.unpack_from(
            '<HH', content, start + 26)) + generator.randrange(part.file_size)
        flipped = bytearray(content)
        flipped[place] ^= 1 << generator.randrange(8)
        checkpoint.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=f'checksum.* {name} '):
            read(str(checkpoint))


def test_loading_verifies_what_it_reads_and_reads_nothing_twice(
        checkpoint, monkeypatch):
    summed = []

    def crc32(data, value=0):
        summed.append(len(data))
        return zlib.crc32(data, value)

    monkeypatch.setattr(container, 'zlib', SimpleNamespace(crc32=crc32))
    expected = torch.load(checkpoint, weights_only=True)
    loaded = load(str(checkpoint))
    with zipfile.ZipFile(checkpoint) as archive:
        parts = archive.infolist()
        # What is no tensor is verified before torch reads it as well.
        few = sum(part.file_size for part in parts
                  if '/data/' not in part.filename)
        every = sum(part.file_size for part in parts)
    assert every <= sum(summed) <= every + few
    for key, value in expected['state_dict'].items():
        assert torch.equal(loaded['state_dict'][key], value)


@pytest.mark.parametrize('number', [1, 5])
def test_parts_in_one_place_are_refused(checkpoint, number):
    """The checksum of one would stand for that of the other."""
    content = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as archive:
        part = archive.infolist()[number]
    # The offset is the last field of an entry in the directory at the end.
    name = content.rindex(part.filename.encode() + b'PK')
    offset = slice(name - 4, name)
    assert content[offset] == struct.pack('<I', part.header_offset)
    content[offset] = bytes(4)
    checkpoint.write_bytes(content)
    for read in (check_container, load):
        with pytest.raises(CheckpointError, match='begin at one place'):
            read(str(checkpoint))


def test_a_file_that_ends_while_it_is_read_is_refused(checkpoint):
    with pytest.raises(CheckpointError, match='cut off|checksum'), \
            open_verified(str(checkpoint)):
        checkpoint.write_bytes(checkpoint.read_bytes()[:-2000])


def test_a_storage_that_claims_more_than_its_part_has_is_refused(checkpoint):
    def change(name, data):
        if not name.endswith('data.pkl'):
            return data
        # The number of elements of the convolution's weight, 108.
        return data.replace(b'Kl', b'J\x00\x00\x00\x40', 1)  # 2^30

    rewritten(checkpoint, change)
    with pytest.raises(CheckpointError, match='claims 4294967296 bytes, its '
                       'part of the file has 432'):
        check_container(str(checkpoint))


def test_compressed_parts_are_refused(tmp_path):
    """Of 256 MB of zeros they take 260 kB."""
    path = tmp_path / 'bomb.pth'
    torch.save(torch.zeros(2**16), path)
    rewritten(path, lambda name, data: data,
              compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match='larger than it is'):
        check_container(str(path))
