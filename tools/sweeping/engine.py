"""Run families one by one, each in a process with limits, resumable."""
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Iterator, Optional

from .probe import probe

PRELOAD = ['torch', 'mmpretrain.models', 'mmdet.models', 'mmseg.models',
           'gdrq_mm', 'sweeping.checks', 'sweeping.models']


class Engine:
    """One family after the other.

    Packages are imported once, by the server that the processes fork from.

    Args:
        work_dir (Path): Where results lie, one JSON a family.
        seconds (float): Limit of time of a family.
        gigabytes (float): Limit of resident memory of a family.
        preload (bool): Import the packages in the server. Defaults to True.
    """

    def __init__(self, work_dir: Path, seconds: float = 300.,
                 gigabytes: float = 8., preload: bool = True) -> None:
        self.work_dir = Path(work_dir).absolute()
        self.seconds = seconds
        self.gigabytes = gigabytes
        os.environ.setdefault('OMP_NUM_THREADS', '1')
        self.context = multiprocessing.get_context('forkserver')
        if preload:
            self.context.set_forkserver_preload(PRELOAD)

    def path_of(self, package: str, family: str) -> Path:
        return self.work_dir / package / f'{family}.json'

    def read(self, package: str, family: str) -> Optional[dict]:
        """What is known of a family; None if it was not run to its end."""
        try:
            record = json.loads(self.path_of(package, family).read_text())
        except (OSError, ValueError):
            return None
        return record if record.get('done') else None

    def run(self, package: str, family: str) -> dict:
        """Run one family to its end, or to its limits."""
        path = self.path_of(package, family)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        process = self.context.Process(
            target=probe, args=(package, family, str(path)), daemon=True)
        begin = time.monotonic()
        process.start()
        verdict = None
        while process.is_alive() and verdict is None:
            process.join(.5)
            if time.monotonic() - begin > self.seconds:
                verdict = f'it takes more than {self.seconds:.0f} seconds'
            elif _gigabytes(process.pid) > self.gigabytes:
                verdict = f'it takes more than {self.gigabytes:g} GB'
        if process.is_alive():
            process.kill()
        process.join()
        record = self.read(package, family)
        if record is None:
            record = _unfinished(path, package, family)
            record['checks'][record.get('checking', 'float')] = verdict or \
                f'its process ended with exit code {process.exitcode}'
            record.update(seconds=round(time.monotonic() - begin, 1),
                          done=True)
            path.write_text(json.dumps(record, indent=1))
        return record

    def records(self) -> Iterator[dict]:
        """All that was run to its end."""
        for path in sorted(self.work_dir.glob('*/*.json')):
            record = self.read(path.parent.name, path.stem)
            if record is not None:
                yield record


def _unfinished(path: Path, package: str, family: str) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return dict(package=package, family=family, checks={})


def _gigabytes(pid: int) -> float:
    """Resident memory of a process."""
    try:
        pages = int(Path(f'/proc/{pid}/statm').read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**30
