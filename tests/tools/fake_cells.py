"""Stands in for the training, in the engine's processes."""
import json
import os
import subprocess
import sys
import time
from multiprocessing import Pool
from pathlib import Path


def run(name, seed, folder, start, **_):
    """'bad' raises, 'dying' ends its process, 'other' has some of its own; the
    metric counts calls."""
    print(f'at work on {name}')
    calls = Path(folder).parent / f'calls{seed}'
    calls.write_text(calls.read_text() + '.' if calls.exists() else '.')
    if name.endswith('bad'):
        raise ValueError('it is a bad cell')
    if name.endswith('dying'):
        os._exit(3)
    if name.endswith('other'):  # as the metric of VOC
        with Pool(1) as pool:
            assert pool.map(abs, [-1]) == [1]
    checkpoint = Path(folder) / 'last.pth'
    checkpoint.write_text(f'{name} {seed} from {start}')
    return dict(metric=float(len(calls.read_text())), seconds=1.,
                checkpoint=str(checkpoint))


def wait(folder):
    """For ever, with a child as data loaders are."""
    child = subprocess.Popen([sys.executable, '-c',
                              'import time; time.sleep(120)'])
    (Path(folder) / 'pids').write_text(f'{os.getpid()} {child.pid}\n')
    time.sleep(120)


def note(name, log):
    """'bad' raises."""
    with open(log, 'a') as file:
        print(f'begin {name}', file=file, flush=True)
        if name == 'bad':
            for number in range(99):
                print('line', number)
            raise ValueError('it is bad')
        time.sleep(.05)
        print(f'end {name}', file=file)
    return dict(name=name)


def burn(package=None, family=None, target=None):
    """Too long; as a family of the sweep."""
    if target:
        _check(package, family, target)
    begin = time.monotonic()
    while time.monotonic() - begin < 60:
        sum(range(1000))


def sleep(seconds):
    time.sleep(seconds)


def shout():
    print('python')
    print('a warning', file=sys.stderr)
    subprocess.run(['echo', 'child'], check=True)
    return 7


def die(package, family, target):
    _check(package, family, target)
    os._exit(3)


def recurse(package, family, target):
    """LeNet without end, all else at once."""
    from sweeping.probe import probe

    def check(record, *_):
        if family == 'lenet':
            check(record)
        record['checks']['float'] = 'ok'

    probe(package, family, target, check)


def _check(package, family, target):
    Path(target).write_text(json.dumps(dict(
        package=package, family=family, checks={}, checking='train')))
