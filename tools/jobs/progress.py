"""How far a job is, and how long it and the whole run will take."""
import re
import sys
import time
from math import inf

# Log lines of mmengine, with the number of an epoch where there is one:
#   Epoch(train)  [3][ 20/200]  lr: ...      Iter(train) [ 20/600]  lr: ...
#   Epoch(test) [10/50]    eta: ...          Iter(test) [10/25]    eta: ...
PROGRESS = re.compile(r'(?:Epoch|Iter)\((train|test)\)\s*'
                      r'(?:\[\s*(\d+)\])?\[\s*(\d+)/(\d+)\]')


def fraction_done(line, max_epochs=1):
    """Read a progress line of mmengine's log.

    Args:
        line (str): One line of the log.
        max_epochs (int): Epochs of the whole training; its log lines tell
            only the present one. Defaults to 1.

    Returns:
        tuple[str, float] or None: 'train' or 'test' and the share that is
        done, None for any other line.
    """
    match = PROGRESS.search(line)
    if match is None:
        return None
    mode, epoch, step, steps = match.groups()
    done = int(step) / max(int(steps), 1)
    if epoch is not None:
        done = (int(epoch) - 1 + done) / max_epochs
    return mode, min(done, 1.)


def format_seconds(seconds):
    """'0:03:25'; '?' where nobody knows."""
    if seconds == inf:
        return '?'
    minutes, seconds = divmod(max(int(seconds + .5), 0), 60)
    return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'


class JobClock:
    """Elapsed and remaining time of one job.

    Args:
        expected (float): Seconds that it may take, as long as no progress is
            known; infinite where nobody knows.
        clock (callable): Gives the time in seconds.
    """

    def __init__(self, expected, clock=time.monotonic):
        self.expected = expected
        self.clock = clock
        self.start = clock()
        self.first = self.last = None

    @property
    def elapsed(self):
        return self.clock() - self.start

    def update(self, fraction):
        """Take in the share that is done."""
        self.last = (self.clock(), fraction)
        if self.first is None:
            # A resumed training does not begin at 0, and loading takes its
            # time: speed is measured from the first sign of life on.
            self.first = self.last

    @property
    def fraction(self):
        return self.last[1] if self.last else 0.

    def remaining(self):
        if self.first is None or self.last[1] <= self.first[1]:
            # Later than expected: nobody knows, but not 0.
            return max(self.expected - self.elapsed, .1 * self.elapsed)
        (began, before), (now, done) = self.first, self.last
        left = (now - began) * (1 - done) / (done - before)
        return max(left - (self.clock() - now), 0)


class Estimate:
    """Remaining time of the whole run.

    Args:
        costs (dict[str, float]): Seconds that every job took on some machine.
            Only their proportions count once a job has been measured.
        known (bool): Whether they are seconds at all, not proportions only.
    """

    def __init__(self, costs, known=True):
        self.costs = costs
        self.open = set(costs)
        self.guess = 1. if known else inf
        self.measured = self.expected = 0.

    @property
    def scale(self):
        """Seconds here for one second there."""
        return self.measured / self.expected if self.expected else self.guess

    def expect(self, name):
        return self.costs[name] * self.scale

    def finish(self, name, seconds=None):
        """A job is done; ``seconds`` where it was run here in one go."""
        self.open.discard(name)
        if seconds is not None:
            self.measured += seconds
            self.expected += self.costs[name]

    def remaining(self, running=None, lanes=1):
        """Seconds until all is done.

        Args:
            running (dict[str, float], optional): Job -> seconds that it
                still takes.
            lanes (int): Jobs side by side, which share what is left.
        """
        running = running or {}
        waiting = sum(self.expect(name) for name in self.open
                      if name not in running)
        return max([(waiting + sum(running.values())) / lanes,
                    *running.values()])


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

    def show(self, line):
        """Print ``line()`` where it is time to."""
        if time.monotonic() - self.shown >= self.interval:
            self.shown = time.monotonic()
            print(f'\r\033[K{line()}' if self.terminal else line(),
                  end='' if self.terminal else '\n', flush=True)

    def finish(self, line):
        """A line that stays."""
        print(f'\r\033[K{line}' if self.terminal else line, flush=True)
        self.shown = time.monotonic()
