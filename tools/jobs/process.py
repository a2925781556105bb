"""One job in a process: logged, limited, and ended with the run.

All processes are forked from a server that has imported torch and the mm
packages: that takes as long as many a job.
"""
import multiprocessing
import os
import pkgutil
import runpy
import shlex
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from math import inf
from pathlib import Path

from .checkout import ROOT

PATIENCE = 10.  # seconds between asking a process to end and killing it
# Preloaded where jobs may be of any package.
MODELS = ('torch', 'mmpretrain.models', 'mmdet.models', 'mmseg.models',
          'gdrq_mm')
WAITING = 20  # times its limit of CPU time may a job take by the clock


@dataclass(frozen=True)
class Limits:
    """What a job may take; beyond it, it is ended and fails.

    Args:
        seconds (float): CPU time.
        gigabytes (float): Resident memory.
    """
    seconds: float = inf
    gigabytes: float = inf

    def broken_by(self, pid, elapsed):
        """str or None: What process ``pid`` takes too much of."""
        seconds, gigabytes = usage(pid)
        if seconds > self.seconds:
            return f'it takes more than {self.seconds:g} seconds of CPU time'
        if elapsed > WAITING * self.seconds:
            return (f'it hangs: {elapsed:.0f} seconds have passed, in which '
                    f'it took {seconds:.0f} of CPU time')
        if gigabytes > self.gigabytes:
            return f'it takes more than {self.gigabytes:g} GB'
        return None


def usage(pid):
    """CPU seconds and resident gigabytes of a process, 0 where the system
    does not tell."""
    try:
        stat = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
        pages = Path(f'/proc/{pid}/statm').read_text().split()[1]
    except OSError:
        return 0., 0.
    user, system = stat.split()[11:13]
    return ((int(user) + int(system)) / os.sysconf('SC_CLK_TCK'),
            int(pages) * os.sysconf('SC_PAGE_SIZE') / 2**30)


def prepare_environment(threads=1):
    """What all processes begin with: call it before the first one starts.

    Args:
        threads (int): Threads of torch and OpenMP, where the user's
            environment does not say: small models use cores better.
    """
    # Fresh memory costs more than the arithmetic of small models on a CPU.
    for name, value in dict(OMP_NUM_THREADS=threads,
                            MALLOC_TRIM_THRESHOLD_=2**28,
                            MALLOC_MMAP_THRESHOLD_=2**25).items():
        os.environ.setdefault(name, str(value))
    # A plain kill ends the processes as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def server(preload=()):
    """The context of :mod:`multiprocessing` that all processes come from.

    Args:
        preload (sequence[str]): Modules that it imports once, where they are
            installed; the first call decides.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(list(preload))
    return context


class Process:
    """A process that calls one function.

    Args:
        function (str): 'module:name'.
        arguments (dict): Arguments of the call.
        log_path (Path): Where all it prints is added.
        limits (Limits): What it may take.
        preload (sequence[str]): See :func:`server`.
    """

    def __init__(self, function, arguments, log_path, limits=Limits(),
                 preload=()):
        context = server(preload)
        self.limits = limits
        self.pipe, theirs = context.Pipe(duplex=False)
        # Not daemonic: mmdet's VOC metric starts processes of its own.
        self.process = context.Process(
            target=serve, args=(theirs, function, arguments, str(log_path)))
        self.process.start()  # waits for what the server imports
        self.begin = time.monotonic()
        theirs.close()

    def poll(self):
        """dict or None: ``value`` or ``error`` at the end, None before."""
        if self.pipe.poll():
            try:
                found = self.pipe.recv()
            except EOFError:
                found = None
            self.process.join(PATIENCE)
            found = found or dict(error='its process ended with exit code '
                                  f'{self.process.exitcode}')
        else:
            why = self.limits.broken_by(self.process.pid,
                                        time.monotonic() - self.begin)
            if why is None:
                return None
            found = dict(error=why)
        self.end()
        return found

    def end(self):
        """End it and its children, politely first."""
        for number, patience in ((signal.SIGTERM, PATIENCE),
                                 (signal.SIGKILL, None)):
            if self.process.is_alive():
                try:
                    os.killpg(self.process.pid, number)
                except ProcessLookupError:  # it has not begun yet
                    os.kill(self.process.pid, number)
                self.process.join(patience)


def serve(pipe, function, arguments, log_path):
    """Call a function, its whole output in a log, and send what it gave."""
    # A session of its own: Ctrl-C reaches the run, which ends this process
    # and its data loaders together.
    os.setsid()
    threading.Thread(target=end_with_parent, daemon=True).start()
    log = open(log_path, 'ab')
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log.fileno(), stream.fileno())
        stream.reconfigure(line_buffering=True)
    try:
        found = dict(value=pkgutil.resolve_name(function)(**arguments))
    except SystemExit as ending:
        found = dict(error=f'it ended with {ending.code}') if ending.code \
            else dict(value=None)
        if isinstance(ending.code, str):
            print(ending.code)
    except Exception as error:
        traceback.print_exc()
        found = dict(error=f'{type(error).__name__}: {error}')
    pipe.send(found)


def end_with_parent():
    """Where the run was killed, nothing may write on."""
    multiprocessing.parent_process().join()
    os.killpg(0, signal.SIGKILL)


def run_script(command):
    """Run a Python script as its command line would, in this process.

    Args:
        command (list[str]): The script, relative to the checkout, and its
            arguments.
    """
    print(f'$ {shlex.join(["python", *command])}')
    os.chdir(ROOT)
    sys.argv = list(command)
    sys.path.insert(0, str((ROOT / command[0]).parent))
    runpy.run_path(command[0], run_name='__main__')
