"""Processes that run one cell after the other.

Importing torch and the mm packages takes as long as many a cell, so a process
does it once. This module, with which a new process begins, imports neither.
"""
import os
import pkgutil
import signal
import threading
import traceback
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context, parent_process
from pathlib import Path


def end_with_parent() -> None:
    """Where the main process was killed, nothing may write on."""
    parent_process().join()
    os._exit(1)


def serve(conn, function: str) -> None:
    """Run what comes through a connection, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends us
    threading.Thread(target=end_with_parent, daemon=True).start()
    call = pkgutil.resolve_name(function)  # imports torch and mm, once
    while True:
        arguments, log_path = conn.recv()
        with open(log_path, 'w') as log, redirect_stdout(log), \
                redirect_stderr(log):
            try:
                result = dict(results=call(**arguments))
            except Exception as error:
                traceback.print_exc()
                result = dict(error=f'{type(error).__name__}: {error}')
        conn.send(result)


class Worker:
    """A process that runs one cell after the other."""

    def __init__(self, function: str) -> None:
        # Not forked: torch's threads do not survive that.
        context = get_context('spawn')
        self.conn, theirs = context.Pipe()
        # Not daemonic: mmdet's VOC metric starts processes of its own.
        self.process = context.Process(target=serve, args=(theirs, function))
        self.process.start()
        theirs.close()
        self.task = None

    def begin(self, task, arguments: dict, log_path: Path) -> None:
        self.task = task
        self.conn.send((arguments, log_path))

    def result(self) -> dict:
        try:
            return self.conn.recv()
        except EOFError:
            self.process.join()
            return dict(error='its process ended with exit code '
                        f'{self.process.exitcode}')

    def end(self) -> None:
        self.process.terminate()
