"""Start each job when those it needs are done: skip, continue or run it."""
import shutil
import time
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

from .checkout import ROOT, cores, shown
from .process import Limits, Process
from .progress import (
    Display,
    Estimate,
    JobClock,
    format_seconds,
    fraction_done,
)
from .records import JobError, decide, read_json, write_json

TAIL = 30  # lines of a failed job's log that are shown


@dataclass
class Task:
    """How to run a job, when all that it needs is done.

    Args:
        inputs (dict): All that its results depend on.
        function (str): 'module:name', called in a process of its own.
        arguments (dict): Arguments of the call.
        finish (callable): Gets what the function gave; gives what the record
            keeps: ``results``, ``outputs`` (paths) and what else there is.
        resume (dict, optional): Arguments that go on with what was
            interrupted. Defaults to None: it starts again.
        recover (callable, optional): Gets why it failed and gives what the
            record keeps. Defaults to None: the job has failed.
        mode (str): Progress lines of mmengine's log that tell how far it is:
            'train' or 'test'.
        epochs (int): Length of that training; 1 where it counts iterations.
    """
    inputs: dict
    function: str
    arguments: dict
    finish: Callable[[Any], dict]
    resume: Optional[dict] = None
    recover: Optional[Callable[[str], dict]] = None
    mode: str = 'train'
    epochs: int = 1


@dataclass
class Job:
    """What is run at most once, as long as its inputs stay the same.

    Args:
        name (str): Unique.
        folder (Path): Where it writes; its record (.json) and log (.log) lie
            beside it.
        prepare (callable): Gets the records of all that is done, by name,
            and gives the :class:`Task`.
        needs (sequence[str]): Names of jobs that must be done before.
        cost (float): Seconds it may take; see :class:`Estimate`.
        tell (callable): Gets a finished record and says what came out.
    """
    name: str
    folder: Path
    prepare: Callable[[Dict[str, dict]], Task]
    needs: Sequence[str] = ()
    cost: float = 1.
    tell: Callable[[dict], str] = field(default=lambda record: '')

    @property
    def record_path(self) -> Path:
        return self.folder.with_name(f'{self.folder.name}.json')

    @property
    def log_path(self) -> Path:
        return self.folder.with_name(f'{self.folder.name}.log')


def longest_first(jobs: Sequence[Job]) -> List[Job]:
    """Those first that most waits for, so that no lane is left alone with a
    long rest."""
    after: Dict[str, List[Job]] = {job.name: [] for job in jobs}
    for job in jobs:
        for name in job.needs:
            after[name].append(job)
    lengths: Dict[str, float] = {}

    def length(job):
        if job.name not in lengths:
            lengths[job.name] = job.cost + max(
                map(length, after[job.name]), default=0.)
        return lengths[job.name]

    return sorted(jobs, key=lambda job: -length(job))


class Running:
    """A job at work."""

    def __init__(self, job, task, process, record, clock) -> None:
        self.job, self.task, self.process = job, task, process
        self.record, self.clock = record, clock
        self.log = open(job.log_path, errors='replace')
        self.log.seek(0, 2)

    def read_log(self) -> None:
        """Take in its progress; a line that is still being written waits."""
        while True:
            position = self.log.tell()
            line = self.log.readline()
            if not line.endswith('\n'):
                self.log.seek(position)
                return
            found = fraction_done(line, self.task.epochs)
            if found and found[0] == self.task.mode:
                self.clock.update(found[1])

    def close(self) -> None:
        """End it, and note what it took."""
        self.process.end()
        self.log.close()
        self.record['seconds'] += self.clock.elapsed
        write_json(self.job.record_path, self.record)


class Engine:
    """Runs jobs side by side.

    Args:
        jobs (sequence[Job]): Begun in this order, as far as they can be.
        lanes (int, optional): Processes side by side. Defaults to one per
            core.
        root (Path): Outputs are relative to it. Defaults to the checkout.
        limits (Limits): What each job may take. Defaults to anything.
        preload (sequence[str]): Modules imported once for all.
        keep_going (bool): A job that fails stops only those that need it;
            otherwise all. Defaults to True.
        known_costs (bool): The costs are seconds. Defaults to False:
            proportions.

    Attributes:
        records (dict[str, dict]): Records of all that is done, by name.
        failed (dict[str, str]): Why jobs failed.
    """

    def __init__(self, jobs: Sequence[Job], lanes: Optional[int] = None,
                 root: Path = ROOT, limits: Limits = Limits(),
                 preload: Sequence[str] = (), keep_going: bool = True,
                 known_costs: bool = False) -> None:
        self.jobs = {job.name: job for job in jobs}
        self.lanes, self.root = lanes or cores(), root
        self.limits, self.preload = limits, preload
        self.keep_going = keep_going
        self.records: Dict[str, dict] = {}
        self.failed: Dict[str, str] = {}
        self.display, self.begin = Display(), time.monotonic()
        self.estimate = Estimate({job.name: job.cost for job in jobs},
                                 known_costs)
        self._running: List[Running] = []

    def run(self) -> Dict[str, str]:
        """Run all that is not done; an interruption ends what runs.

        Returns:
            dict[str, str]: Why jobs failed, by name.

        Raises:
            JobError: One failed, and ``keep_going`` is off.
        """
        waiting = list(self.jobs.values())
        try:
            while waiting or self._running:
                waiting = [job for job in waiting if not self._take(job)]
                if self._running:
                    wait([each.process.pipe for each in self._running], .2)
                for each in list(self._running):
                    self._look_after(each)
                self.display.show(self._progress)
        finally:
            for each in self._running:
                each.close()
        return self.failed

    def _take(self, job: Job) -> bool:
        """Begin a job, unless it has to wait."""
        missing = [name for name in job.needs if name not in self.records]
        for name in missing:
            if name in self.failed or name not in self.jobs:
                self._fail(job, f'{name} ' + (
                    'failed' if name in self.failed else
                    'was not asked for'))
                return True
        if missing or len(self._running) >= self.lanes:
            return False
        try:
            self._begin(job)
        except Exception as error:  # of this job alone
            self._fail(job, sentence(error))
        return True

    def _begin(self, job: Job) -> None:
        task, before = job.prepare(self.records), read_json(job.record_path)
        decision, why = decide(before, task.inputs, self.root)
        if decision == 'done':
            self._done(job, before, 'done already')
            return
        goes_on = decision == 'continue' and task.resume is not None
        if not goes_on:
            shutil.rmtree(job.folder, ignore_errors=True)
            job.log_path.unlink(missing_ok=True)
            before = dict(interruptions=-1)
        job.folder.mkdir(parents=True, exist_ok=True)
        job.log_path.touch()
        record = dict(status='running', inputs=task.inputs,
                      seconds=before.get('seconds', 0.),
                      interruptions=before.get('interruptions', 0) + 1)
        write_json(job.record_path, record)
        self._say(job, f'{"goes on" if goes_on else "starts"} ({why}), log '
                  f'{shown(job.log_path)}')
        clock = JobClock(self.estimate.expect(job.name))
        process = Process(task.function, task.resume if goes_on else
                          task.arguments, job.log_path, self.limits,
                          self.preload)
        self._running.append(Running(job, task, process, record, clock))

    def _look_after(self, run: Running) -> None:
        """Read its log; take what it gave where it has ended."""
        found = run.process.poll()
        run.read_log()
        if found is None:
            return
        self._running.remove(run)
        run.close()
        job, task, record = run.job, run.task, run.record
        try:
            if 'error' not in found:
                record.update(task.finish(found['value']), status='done')
            elif task.recover:
                record.update(task.recover(found['error']), status='done')
            else:
                raise JobError(found['error'])
        except Exception as error:
            self._fail(job, sentence(error), job.log_path)
            return
        write_json(job.record_path, record)
        seconds = run.clock.elapsed
        # Read again: what the next run will find.
        self._done(job, read_json(job.record_path), format_seconds(seconds),
                   None if record['interruptions'] else seconds)

    def _done(self, job, record, how, seconds=None) -> None:
        self.records[job.name] = record
        self.estimate.finish(job.name, seconds)
        told = job.tell(record)
        self._say(job, how + (f', {told}' if told else ''))

    def _fail(self, job: Job, why: str, log: Optional[Path] = None) -> None:
        if not self.keep_going:
            raise JobError(f'{job.name}: {failure(why, log)}')
        self.failed[job.name] = why + (f' (log: {shown(log)})' if log else '')
        self.estimate.finish(job.name)
        self._say(job, f'FAILED: {self.failed[job.name]}')

    def _say(self, job: Job, text: str) -> None:
        over = len(self.records) + len(self.failed)
        self.display.finish(f'[{over}/{len(self.jobs)}] {job.name}: {text}')

    def _progress(self) -> str:
        """'det seed 0 start 12%, 0:03:01 left | all: 0:41:00 left'"""
        left = {run.job.name: run.clock.remaining() for run in self._running}
        return ' | '.join([
            *(f'{run.job.name} {run.clock.fraction:.0%}, '
              f'{format_seconds(left[run.job.name])} left'
              for run in self._running),
            f'all {format_seconds(time.monotonic() - self.begin)} elapsed, '
            f'{format_seconds(self.estimate.remaining(left, self.lanes))} '
            'left'])


def check_failed(failed: Dict[str, str]) -> None:
    """Raises:
        JobError: There are any; it names each.
    """
    if failed:
        raise JobError(f'{len(failed)} jobs failed; the same command tries '
                       'them again:\n' + '\n'.join(
                           f'    {name}: {why}'
                           for name, why in failed.items()))


def sentence(error: Exception) -> str:
    return str(error) if isinstance(error, JobError) else \
        f'{type(error).__name__}: {error}'


def failure(why: str, log: Optional[Path]) -> str:
    """The message on a failed job: the end of its log, how to repeat it."""
    if log is None:
        return why
    lines = log.read_text(errors='replace').splitlines()
    command = [line[2:] for line in lines if line.startswith('$ ')]
    return '\n'.join([
        f'{why}. The last lines of its log:', '',
        *(f'    {line}' for line in lines[-TAIL:]), '', f'Whole log: {log}',
        *(['To repeat it alone:', f'    cd {ROOT}', f'    {command[-1]}']
          if command else []),
        'The same command goes on from here.'])
