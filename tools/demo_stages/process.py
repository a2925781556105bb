"""Run a stage as a process: in full view, logged, and ended with the demo."""
import fcntl
import os
import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TAIL = 30  # lines of a failed stage's log that are shown


class DemoError(RuntimeError):
    """Ends the demo with a message instead of a traceback."""


def gdrq_mm_version():
    """That of the checkout, without importing torch for it."""
    return runpy.run_path(str(ROOT / 'gdrq_mm' / 'version.py'))['__version__']


def shown(path: Path) -> str:
    """Short where it lies in the checkout: commands are to be read."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


class Lock:
    """One demo at a time in a work dir.

    The lock is inherited by the processes of the stages. Where a demo was
    killed and its training lives on, the next demo sees that, instead of
    starting a second training in the same place.

    Args:
        work_dir (Path): Made if need be.
    """

    def __init__(self, work_dir):
        work_dir.mkdir(parents=True, exist_ok=True)
        self.file = open(work_dir / '.lock', 'a+')
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.seek(0)
            raise DemoError(
                f'another run, or a part of one that was killed, still works '
                f'in {work_dir} (process {self.file.read().strip()}). Wait '
                'for it, end it, or give another --work-dir.') from None
        self.pids = {os.getpid()}
        self.note()

    def note(self):
        """Write down who works here."""
        self.file.seek(0)
        self.file.truncate()
        self.file.write(' '.join(map(str, sorted(self.pids))) + '\n')
        self.file.flush()

    def fileno(self):
        return self.file.fileno()


class Display:
    """One line that tells the progress of all that runs: rewritten on a
    terminal, printed anew from time to time elsewhere.

    Args:
        interval (float): Seconds between two lines elsewhere.
    """

    def __init__(self, interval=15.):
        self.terminal = sys.stdout.isatty()
        self.interval = .5 if self.terminal else interval
        self.shown = time.monotonic()
        self.running = {}

    def show(self, name, part, whole):
        """Take in where stage ``name`` is; print when it is time to."""
        self.running[name] = part
        if time.monotonic() - self.shown < self.interval:
            return
        self.shown = time.monotonic()
        line = ' | '.join([*self.running.values(), whole])
        if self.terminal:
            print(f'\r\033[K{line}', end='', flush=True)
        else:
            print(line, flush=True)

    def finish(self, line, name=None):
        """A line that stays; ``name`` runs no longer."""
        self.running.pop(name, None)
        print(f'\r\033[K{line}' if self.terminal else line, flush=True)
        self.shown = time.monotonic()


def run(command, log_path, lock, on_line, on_tick, threads=None):
    """Run a command, its whole output in a log file.

    Args:
        command (list[str]): Run in the root of the checkout.
        log_path (Path): Appended to: a stage that goes on keeps its log.
        lock (Lock): Handed on to the process.
        on_line (callable): Called with every line of the output.
        on_tick (callable): Called several times a second; what it raises
            ends the process.
        threads (int, optional): For torch and OpenMP, where the user's
            environment does not say. Defaults to None: all cores.

    Raises:
        DemoError: The command fails; with the end of its log.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, 'a') as log:
        log.write(f'$ {shlex.join(command)}\n')
        log.flush()
        begin = log.tell()
        # A session of its own: Ctrl-C reaches the demo, which ends the
        # process and its data loaders together.
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
            stdin=subprocess.DEVNULL, pass_fds=[lock.fileno()],
            env={'OMP_NUM_THREADS': str(threads or os.cpu_count()),
                 **os.environ, 'PYTHONUNBUFFERED': '1'},
            start_new_session=True)
    lock.pids.add(process.pid)
    lock.note()
    try:
        with open(log_path, errors='replace') as log:
            log.seek(begin)
            while process.poll() is None:
                read_lines(log, on_line)
                on_tick()
                time.sleep(.2)
            read_lines(log, on_line)
    finally:
        end_group(process)
        lock.pids.discard(process.pid)
        lock.note()
    if process.returncode:
        raise DemoError(failure(command, log_path, process.returncode))


def read_lines(log, on_line):
    """Hand on what was added; a line that is still being written waits."""
    while True:
        position = log.tell()
        line = log.readline()
        if not line.endswith('\n'):
            log.seek(position)
            return
        on_line(line)


def end_group(process):
    """End a process and its children, politely first."""
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


def failure(command, log_path, code):
    """The message on a failed command."""
    lines = log_path.read_text(errors='replace').splitlines()[-TAIL:]
    how = (f'was ended by signal {-code}' if code < 0 else
           f'failed with exit code {code}')
    return '\n'.join([
        f'the stage {how}. The last lines of its log:', '',
        *(f'    {line}' for line in lines), '', f'Whole log: {log_path}',
        'To repeat this stage alone:', f'    cd {shlex.quote(str(ROOT))}',
        f'    {shlex.join(command)}',
        'The demo goes on from here when it is started again.'])
