"""Mutated checkpoint files: none loads other values unnoticed.

Usage: python tests/fuzz/fuzz_files.py [--cases 10000] [--seed 0] [--json FILE]

Files of all kinds (packed, latent, of a training) are changed in their bytes,
in their bytes with right checksums, in their entries, and in their entries
with the seal made anew, and loaded as mmengine loads. A failure is

- other values in the model than those saved, unless all are legal and the
  file has no seal or one that was made anew (who does that could as well have
  trained it);
- a refusal with another exception than CheckpointError, or after which the
  model is not as it was;
- a process started, a file written or removed, a connection opened;
- more than 2 s of CPU time, or more memory than twice that of an honest file
  (and 4 MB for what the allocator does in between).

Linux only: it counts the memory.
"""
import collections
import ctypes
import io
import random
import re
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import slices
import torch
from mmengine.runner import load_checkpoint
from torch import nn

import gdrq_mm
from gdrq_mm.checkpoint import NAME, CheckpointError, pack, seal
from gdrq_mm.checkpoint.keys import is_stored
from gdrq_mm.training import get_state

KINDS = ('packed', 'latent', 'training')
MANNERS = ('bytes', 'summed bytes', 'structure', 'resealed structure')
SLACK = 4 * 2**20
LIBC = ctypes.CDLL(None)
EVENTS = ('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'os.mkdir',
          'os.remove', 'os.rename', 'os.rmdir', 'subprocess.Popen',
          'shutil.', 'socket.', 'ctypes.dlopen', 'code.__new__')


def make_model(seed: int, outputs: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 36, outputs))
    gdrq_mm.quantize_(model, dict(weight=dict(bits=2),
                                  activation=dict(bits=4)))
    return model


def make_contents(outputs: int) -> dict:
    """What a training, ``--latent`` and ``--packed`` write."""
    model = make_model(0, outputs)
    optimizer = torch.optim.SGD(model.parameters(), .1)
    for _ in range(3):
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    meta = dict(cfg='model = dict()', classes=('a', 'b'), epoch=3)
    latent = {key: value.clone() for key, value in model.state_dict().items()}
    training = dict(latent)
    seal(latent, NAME, meta)
    return dict(
        packed=dict(meta=meta, state_dict=pack(model, meta)),
        latent=dict(meta=meta, state_dict=latent),
        training=dict(meta=meta, state_dict=training,
                      optimizer=optimizer.state_dict()))


def as_bytes(content: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


# -- mutations ----------------------------------------------------------------

def mutate_bytes(data: bytes, random_: random.Random) -> bytes:
    """A few of the things that disks, networks and editors do."""
    data = bytearray(data)
    for _ in range(random_.choice((1, 1, 1, 2, 5))):
        at = random_.randrange(len(data) or 1)
        length = random_.choice((1, 2, 4, 8, 64, 512))
        how = random_.randrange(8)
        if how < 3:
            data[at:at + 1] = bytes(
                [byte ^ 1 << random_.randrange(8) for byte in data[at:at + 1]])
        elif how == 3:
            data[at:at + length] = random_.randbytes(length)
        elif how == 4:
            data[at:at + length] = bytes(length)
        elif how == 5:
            del data[at:at + length]
        elif how == 6:
            data[at:at] = data[at:at + length]
        else:
            del data[at:]
    return bytes(data)


def mutate_part(data: bytes, random_: random.Random) -> bytes:
    """One part of the archive is mutated, all checksums are right."""
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, \
            zipfile.ZipFile(content, 'w') as new:
        parts = old.infolist()
        chosen = random_.choice(
            [part.filename for part in parts if part.file_size]
            + 3 * [part.filename for part in parts
                   if part.filename.endswith('data.pkl')])
        for part in parts:
            inside = old.read(part.filename)
            if part.filename == chosen:
                inside = mutate_bytes(inside, random_)
            new.writestr(part.filename, inside)
    return content.getvalue()


def mutate_value(value: torch.Tensor, random_: random.Random):
    """Another value in the place of a tensor."""
    if not isinstance(value, torch.Tensor) or value.is_sparse \
            or value.numel() > 2**24:
        return torch.zeros(3)  # it was mutated before
    flat = value.clone().reshape(-1)
    if random_.random() < .4 and flat.numel():
        numbers = (0, -1, 1, 2, 3, 255, -5, 2**40, 2**62) if \
            not value.is_floating_point() else (
                0., -1., torch.nan, torch.inf, -torch.inf, 1e-40, 1e38, 3.)
        flat[random_.randrange(len(flat))] = random_.choice([
            number for number in numbers if value.is_floating_point()
            or value.dtype == torch.long or 0 <= number < 256])
        return flat.view_as(value)
    how = random_.randrange(9)
    if how == 0:
        return value.to(random_.choice((
            torch.half, torch.double, torch.long, torch.uint8, torch.bool,
            torch.complex64, torch.bfloat16)))
    if how == 1:
        return value[None]
    if how == 2:
        return flat[:max(len(flat) - 1, 0)]
    if how == 3 and len(flat):
        return flat[:1].expand(random_.choice((2**20, 2**30, 2**36)))
    if how == 4 and len(flat):
        return value.reshape(-1)[0].expand(value.shape)
    if how == 5 and value.dim():
        return value.to_sparse()
    if how == 6:
        return random_.choice((None, 'text', 3, [1], {}, b'x'))
    if how == 7:
        return torch.empty(0)
    return value.flip(0).contiguous() if value.dim() else value + 1


def mutate_structure(content: dict, random_: random.Random) -> dict:
    content = {key: dict(value) for key, value in content.items()}
    state = content['state_dict']
    schemes = state[f'{NAME}.schemes']
    for _ in range(random_.choice((1, 1, 2))):
        key, other = (random_.choice(list(state)) for _ in range(2))
        how = random_.randrange(12)
        if how < 5:
            state[key] = mutate_value(state[key], random_)
        elif how == 5:
            del state[key]
        elif how == 6:
            state[key + random_.choice(('x', '.', '.clip'))] = state.pop(key)
        elif how == 7:
            state[key], state[other] = state[other], state[key]
        elif how == 8:
            state[random_.choice((
                'extra', 'weight_packed', '0.weight_packed', '0.weight',
                f'{NAME}.extra', '4.input_quantizer.extra'))] = \
                mutate_value(torch.ones(3), random_)
        elif how == 9:
            content['meta'][random_.choice(('cfg', 'x'))] = 'changed'
        elif how == 10:
            text = bytes(schemes.tolist())
            text = random_.choice((
                text.replace(b'2 bits', b'4 bits', 1), b'{}', b'[]', b'null',
                b'{"0": {}}', text[:-1], mutate_bytes(text, random_)))
            state[f'{NAME}.schemes'] = torch.tensor(
                list(text), dtype=torch.uint8)
        else:
            state[f'{NAME}.phase_index'] = mutate_value(
                torch.tensor(1), random_)
    return content


def reseal(content: dict) -> None:
    """What someone does who knows how."""
    state = content['state_dict']
    if not all(map(is_stored, state.values())):
        return  # to hash what is only claimed takes its memory
    for part in ('format', 'meta_digest', 'digest'):
        state.pop(f'{NAME}.{part}', None)
    seal(state, NAME, content['meta'])


# -- judgement ----------------------------------------------------------------

def snapshot(model: nn.Module) -> dict:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state['phase'] = torch.tensor(get_state(model).phase == 'quantize')
    return state


def is_same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[key].dtype and value.shape == other[key].shape
        and value.numpy().tobytes() == other[key].numpy().tobytes()
        for key, value in one.items())


def is_legal(state: dict) -> bool:
    """Whether a training could have given it."""
    return all(
        (not value.is_floating_point() or bool(torch.isfinite(value).all()))
        and not (key.endswith(('clip', 'running_var', 'num_updates'))
                 and float(value.min()) < 0)
        for key, value in state.items())


class Limits:
    """Time and memory of loads; memory as Linux counts it."""

    def __enter__(self):
        # What was freed before would be taken again without being counted.
        LIBC.malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # forget the peak
        self.memory, self.begin = self._memory('VmRSS'), time.process_time()
        return self

    def __exit__(self, *_):
        self.seconds = time.process_time() - self.begin
        self.bytes = self._memory('VmHWM') - self.memory

    def _memory(self, name: str) -> int:
        status = Path('/proc/self/status').read_text()
        return int(re.search(rf'{name}:\s*(\d+)', status)[1]) * 1024


def load(model: nn.Module, path: Path) -> None:
    load_checkpoint(model, str(path), map_location='cpu', logger='silent')


class Events:
    """What a load does besides loading."""

    def __init__(self) -> None:
        self.seen, self.on = [], False
        sys.addaudithook(self._watch)

    def _watch(self, event, args):
        if self.on and event.startswith(EVENTS):
            self.seen.append(f'{event} {args}')


def run(numbers: range, seed: int, outputs: int = 5) -> dict:
    """Load mutated files.

    Args:
        numbers (range): Of the cases.
        seed (int): Of all of them.
        outputs (int): Of the model, each has 216 weights. Defaults to 5.

    Returns:
        dict: Figures; the failures among them are described.
    """
    contents = make_contents(outputs)
    files = {kind: as_bytes(content) for kind, content in contents.items()}
    expected, honest = {}, {}
    counts, failures = collections.Counter(), []
    longest = greatest = 0.
    events = Events()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'mutated.pth'
        for kind in KINDS:
            path.write_bytes(files[kind])
            load(make_model(1, outputs), path)  # what is imported on the way
            model = make_model(1, outputs)
            honest[kind] = len(files[kind])
            for _ in range(3):
                with Limits() as limits:
                    load(model, path)
                honest[kind] = max(honest[kind], limits.bytes)
            expected[kind] = snapshot(model)
        start = make_model(1, outputs)
        before = snapshot(start)
        for number in numbers:
            random_ = random.Random(f'{seed} {number}')
            kind, manner = random_.choice(KINDS), random_.choice(MANNERS)
            case = f'seed {seed} case {number}: {manner} of a {kind} file'
            if not write(path, kind, manner, contents, files, random_):
                counts['not written'] += 1
                continue
            error, events.on = None, True
            with Limits() as limits:
                try:
                    load(start, path)
                except Exception as error_:
                    error = error_
            events.on = False
            longest = max(longest, limits.seconds)
            greatest = max(greatest, limits.bytes)
            if events.seen:
                failures.append(f'{case}: {events.seen}')
                events.seen = []
            if limits.seconds > 2 or limits.bytes > 2 * honest[kind] + SLACK:
                failures.append(f'{case}: {limits.seconds:.1f} s, '
                                f'{limits.bytes} bytes')
            after = snapshot(start)
            if error is not None:
                outcome = 'refused'
                if not isinstance(error, CheckpointError) and not (
                        type(error) is RuntimeError  # mmengine's
                        and 'No state_dict found' in str(error)):
                    failures.append(f'{case}: {error!r}')
                if not is_same(after, before):
                    failures.append(f'{case}: refused, and the model changed')
            elif is_same(after, expected[kind]):
                outcome = 'loaded as saved'
            else:
                outcome = 'loaded other legal values'
                may = kind == 'training' and manner != 'bytes' or \
                    manner.startswith('resealed')
                if not may or not is_legal(after):
                    failures.append(f'{case}: loaded other values')
            counts[outcome] += 1
            if not is_same(after, before):
                start = make_model(1, outputs)
    return dict(cases=len(numbers), seed=seed, outcomes=dict(counts),
                longest_cpu_seconds=round(longest, 3),
                greatest_memory_bytes=int(greatest),
                greatest_honest_memory_bytes=max(honest.values()),
                failures=failures)


def write(path: Path, kind: str, manner: str, contents: dict, files: dict,
          random_: random.Random) -> bool:
    """Write a mutated file; whether it could be."""
    if manner == 'bytes':
        path.write_bytes(mutate_bytes(files[kind], random_))
    elif manner == 'summed bytes':
        path.write_bytes(mutate_part(files[kind], random_))
    else:
        content = mutate_structure(contents[kind], random_)
        try:
            if manner.startswith('resealed') and kind != 'training':
                reseal(content)
            path.write_bytes(as_bytes(content))
        except Exception:  # it cannot be sealed or saved
            return False
    return True


if __name__ == '__main__':
    slices.main(run, __doc__.split('\n')[0], cases=10000, size=500)
