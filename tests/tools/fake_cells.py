"""Stands in for the training, in the engine's processes."""
import os
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
    (Path(folder) / 'pid').write_text(f'{os.getpid()}\n')
    time.sleep(120)
