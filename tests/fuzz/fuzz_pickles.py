"""Code in checkpoint files, in every form a pickle has: none of it runs.

Usage: python tests/fuzz/fuzz_pickles.py [--seed 0] [--json FILE]

Every payload would make a folder. It stands in each place of a checkpoint, in
each container and pickle protocol; the file is loaded as mmengine loads it.
"""
import io
import itertools
import pickle
import random
import tempfile
import zipfile
from pathlib import Path

import slices
import torch
from mmengine.runner import load_checkpoint
from torch import nn

import gdrq_mm  # noqa: F401, replaces mmengine's loaders

# (module, name) and arguments, for a folder {0!r}; as pickles name them.
CALLS = [
    ('posix', 'mkdir', ('{0}', )),
    ('os', 'makedirs', ('{0}', )),
    ('posix', 'system', ('mkdir {0}', )),
    ('subprocess', 'check_call', (['mkdir', '{0}'], )),
    ('subprocess', 'Popen', (['mkdir', '{0}'], )),
    ('builtins', 'eval', ('__import__("os").mkdir({0!r})', )),
    ('builtins', 'exec', ('__import__("os").mkdir({0!r})', )),
    ('__builtin__', 'eval', ('__import__("os").mkdir({0!r})', )),
    ('timeit', 'timeit', ('__import__("os").mkdir({0!r})', 'pass', None, 1)),
    ('pathlib', 'Path.mkdir', ('{0}', )),
    ('mmengine.utils', 'mkdir_or_exist', ('{0}', )),
    ('mmengine.utils.path', 'mkdir_or_exist', ('{0}', )),
    ('mmengine.config', 'Config._file2dict', ('{0}.py', )),
    ('torch.utils.collect_env', 'run', ('mkdir {0}', )),
    ('numpy.testing._private.utils', 'runstring', (
        '__import__("os").mkdir({0!r})', {})),
]
FORMS = ('reduce', 'obj', 'inst', 'newobj', 'build', 'getattr')
PLACES = ('meta', 'state_dict', 'optimizer', 'message_hub', 'key', 'bare')
CONTAINERS = ('zip', 'old', 'pickle')


def text(value: str) -> bytes:
    data = value.encode()
    return b'X' + len(data).to_bytes(4, 'little') + data


def arguments(values) -> bytes:
    """Opcodes that push each."""
    pushed = b''
    for value in values:
        if isinstance(value, str):
            pushed += text(value)
        elif isinstance(value, list):
            pushed += b'(' + arguments(value) + b'l'
        elif isinstance(value, dict):
            pushed += b'}'
        else:
            pushed += b'N' if value is None else b'K' + bytes([value])
    return pushed


def payload(call: tuple, form: str, folder: str) -> bytes:
    """Opcodes that leave the call's result on the stack."""
    module, name, values = call
    values = [value.format(folder) if isinstance(value, str) else
              [each.format(folder) for each in value]
              if isinstance(value, list) else value for value in values]
    found = f'c{module}\n{name}\n'.encode()
    pushed = arguments(values)
    if form == 'reduce':
        return found + b'(' + pushed + b'tR'
    if form == 'obj':
        return b'(' + found + pushed + b'o'
    if form == 'inst':
        return b'(' + pushed + f'i{module}\n{name}\n'.encode()
    if form == 'newobj':
        return found + b'(' + pushed + b't\x81'
    if form == 'build':  # the state of an allowed type is the call's result
        return b'ccollections\nOrderedDict\n)R' + found + b'(' + pushed + \
            b'tRb'
    owner, _, attribute = f'{module}.{name}'.rpartition('.')
    return (b'cbuiltins\ngetattr\n(' + f'c{owner}\n__dict__\n'.encode()
            + text(attribute) + b'tR(' + pushed + b'tR')


def stream(place: str, inside: bytes, protocol: int) -> bytes:
    """A pickle of a checkpoint with the payload in some place."""
    if place == 'bare':
        body = inside
    elif place == 'key':
        body = b'}' + inside + b'Ns'
    elif place == 'state_dict':
        body = b'}' + text(place) + b'}' + text('weight') + inside + b'ss'
    else:
        body = b'}' + text('state_dict') + b'}s' + text(place) + b'}' + text(
            'cfg') + inside + b'ss'
    return b'\x80' + bytes([protocol]) + body + b'.'


def write(path: Path, container: str, pickled: bytes) -> None:
    if container == 'pickle':
        path.write_bytes(pickled)
    elif container == 'old':
        buffer = io.BytesIO()
        torch.save({}, buffer, _use_new_zipfile_serialization=False)
        head = buffer.getvalue()
        # Magic number, protocol and system first; then the content.
        rest = io.BytesIO(head)
        for _ in range(3):
            pickle.load(rest)
        path.write_bytes(head[:rest.tell()] + pickled + pickle.dumps([], 2))
    else:
        torch.save({}, path)
        with zipfile.ZipFile(path) as old:
            parts = [(name, old.read(name)) for name in old.namelist()]
        with zipfile.ZipFile(path, 'w') as new:
            for name, data in parts:
                new.writestr(name, pickled if name.endswith('data.pkl')
                             else data)


def run(numbers: range, seed: int) -> dict:
    """Returns figures; the failures among them are described."""
    every = list(itertools.product(range(len(CALLS)), FORMS, PLACES,
                                   CONTAINERS, (2, 4)))
    random.Random(seed).shuffle(every)
    numbers = numbers[:max(len(every) - numbers.start, 0)]
    failures, refused, live = [], 0, 0
    model = nn.Linear(1, 1)
    with tempfile.TemporaryDirectory() as root:
        for number in numbers:
            call, form, place, container, protocol = every[number]
            folder = Path(root) / f'ran{number}'
            pickled = stream(place, payload(CALLS[call], form, str(folder)),
                             protocol)
            path = Path(root) / 'file.pth'
            write(path, container, pickled)
            case = (f'seed {seed} case {number}: {CALLS[call][:2]} by {form} '
                    f'in {place} of {container}, protocol {protocol}')
            try:
                load_checkpoint(model, str(path), map_location='cpu',
                                logger='silent')
                failures.append(f'{case}: loaded')
            except RuntimeError:
                refused += 1
            except Exception as error:
                failures.append(f'{case}: {error!r}')
            if folder.exists():
                failures.append(f'{case}: RAN')
                continue
            # Is it one at all? Python's own unpickler says so.
            try:
                pickle.loads(pickled)
            except Exception:
                pass
            live += folder.exists()
    return dict(cases=len(numbers), seed=seed, refused=refused,
                live_under_pickle=live, failures=failures)


if __name__ == '__main__':
    slices.main(run, __doc__.split('\n')[0], cases=10000, size=500)
