"""Families as jobs: each in a process with limits, run once."""
import os
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence, Tuple

from jobs.engine import Engine, Job, Limits, Task
from jobs.process import MODELS, prepare_environment
from jobs.records import read_json

from .page import verdict_of


def path_of(work_dir: Path, package: str, family: str) -> Path:
    return Path(work_dir).absolute() / package / f'{family}.json'


def read(work_dir: Path, package: str, family: str, function: str
         ) -> Optional[dict]:
    """What ``function`` found of a family; None if it was not run to its
    end.

    Raises:
        ValueError: Another function was run there.
    """
    path = path_of(work_dir, package, family)
    record = read_json(path)
    if not record or not record.get('done'):
        return None
    if record.get('inputs', {}).get('function', function) != function:
        raise ValueError(f'{path} is of the other sweep, with or without '
                         '--export; give each a --work-dir of its own')
    return record


def read_all(work_dir: Path, function: str) -> Iterator[dict]:
    """All that ``function`` was run of, to its end."""
    for path in sorted(Path(work_dir).glob('*/*.json')):
        record = read(work_dir, path.parent.name, path.stem, function)
        if record is not None:
            yield record


def run_families(work_dir: Path, names: Sequence[Tuple[str, str]],
                 limits: Limits = Limits(),
                 function: str = 'sweeping.probe:probe',
                 tell: Callable[[dict], str] = verdict_of) -> None:
    """Run families one by one, whatever is known of them.

    Args:
        work_dir (Path): Where results lie, one JSON a family.
        names (sequence[tuple[str, str]]): Package and family.
        limits (Limits): What each may take.
        function (str): What checks one.
        tell (callable): What came out, in words.
    """
    prepare_environment()
    Engine([_job(work_dir, *name, function, tell) for name in names],
           lanes=1, limits=limits, preload=MODELS).run()


def _job(work_dir: Path, package: str, family: str, function: str,
         tell: Callable[[dict], str]) -> Job:
    inputs = dict(package=package, family=family, function=function)
    folder = path_of(work_dir, package, family).with_suffix('')
    target = folder / 'found.json'

    def found(_=None) -> dict:
        return dict(read_json(target) or dict(inputs, checks={}), outputs=[])

    def recover(why: str) -> dict:
        """A limit, too, is a result: of the check that it was at."""
        record = found()
        record['checks'][record.get('checking', 'float')] = why
        return dict(record, done=True)

    def prepare(records: dict) -> Task:
        # What is known of it goes when its turn comes, not before.
        path_of(work_dir, package, family).unlink(missing_ok=True)
        return Task(inputs, function, dict(
            package=package, family=family, target=os.fspath(target)), found,
            recover=recover)

    return Job(f'{package} {family}', folder, prepare, tell=tell)
