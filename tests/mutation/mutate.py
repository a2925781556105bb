"""How many small wrong changes of the core the tests find.

Usage: python tests/mutation/mutate.py [MODULE ...] [--share 1.] [--seed 0]
           [--again] [--lines FILE] [--json FILE]

Each mutant (:mod:`mutants`) runs in a fork of a process that has imported
torch, with tests that execute its line, the fastest and those of its own room
first, 40 s of CPU time in all, until one fails. Which these are is traced
once. Failing to import, to end, or to stay alive counts as found; equivalent
mutants count as not found. A run that was stopped goes on where it was
(FILE.part).

Not mutmut: it runs the tests once in the process that it forks, and torch
allows no backward pass in a fork of a process that ran one. Not cosmic-ray:
it starts pytest anew for each mutant, whose imports take longer than the
tests.
"""
import argparse
import ast
import contextlib
import importlib
import importlib.abc
import importlib.util
import itertools
import json
import math
import os
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional

import hypothesis
import pytest
import torch
from mutants import Mutant, mutants_of

ROOT = Path(__file__).parents[2]
MODULES = [
    'functional', 'quantizers/base', 'quantizers/schemes',
    'quantizers/first_batch', 'quantizers/learned_value',
    'quantizers/least_squares', 'quantizers/lsq', 'quantizers/lsq_plus',
    'quantizers/pact', 'quantizers/dorefa', 'quantizers/direct',
    'quantizers/scale_clip/scheme', 'quantizers/scale_clip/weight',
    'quantizers/scale_clip/activation', 'quantizers/scale_clip/learned',
    'quantizers/scale_clip/learned_weight', 'quantizers/scale_clip/codes',
    'quantizers/scale_clip/least_squares', 'quantizers/scale_clip/running',
    'quantizers/scale_clip/defaults', 'training/state', 'training/step',
    'checkpoint/packing', 'merge/flow', 'integer/integer', 'integer/graph',
    'integer/ranges', 'integer/align', 'integer/moves']
TESTS = ['test_functional.py', 'quantizers', 'test_extend.py', 'config',
         'test_convert.py', 'training', 'layers', 'kernels/test_kernels.py',
         'checkpoint', 'merge', 'integer']
SLOWEST = 6.  # CPU seconds of a test that is still used
# Before the forks: these take longer than most tests.
IMPORTS = ('mmengine.runner', 'mmcv.ops', 'onnxruntime', 'onnxscript',
           'torch.export', 'torch._dynamo', 'scipy.optimize')
MOST = 40.  # CPU seconds of tests for a mutant: others do not find it


def forked(function: Callable[[], int], cpu_seconds: float,
           wall_seconds: float = 1200) -> int:
    """What ``function`` returns in a fork, -1 if it was ended by a limit."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(null, stream)
            limit = int(cpu_seconds) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            signal.alarm(int(wall_seconds))
            code = function()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return -1 if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def pytest_main(tests: List[str], *plugins, stop: bool = False) -> int:
    os.chdir(ROOT)
    hypothesis.settings.register_profile(
        'mutation', database=None, derandomize=True, deadline=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate])
    hypothesis.settings.load_profile('mutation')
    # What torch.compile looks at must be as it is on the disk.
    return int(pytest.main(
        ['-q', '-p', 'no:cacheprovider', '-p', 'no:randomly', '-W', 'ignore',
         '-k', 'not compiled', *(['-x'] if stop else []), *tests],
        plugins=list(plugins)))


class Tracer:
    """Which statements of the modules each test executes, and its CPU time.

    The modules note it themselves: a trace function would slow down all else.
    """

    def __init__(self) -> None:
        self.now = ''
        self.seconds: Dict[str, float] = {}
        self.lines: Dict[str, Dict[str, set]] = {}  # by module, by test
        self.failed: set = set()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        self.now = item.nodeid
        begin = time.process_time()
        yield
        self.seconds[self.now] = time.process_time() - begin

    def pytest_runtest_logreport(self, report):
        if report.failed:  # it finds nothing
            self.failed.add(report.nodeid)

    def noting(self, module: str) -> 'Replaced':
        """An import that notes the lines of functions that run."""

        def note(line: int) -> None:
            self.lines.setdefault(module, {}).setdefault(
                self.now, set()).add(line)

        tree = ast.parse(path_of(module).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                self._add_notes(node)
        return Replaced(module, ast.fix_missing_locations(tree),
                        dict(__note__=note))

    def _add_notes(self, node: ast.stmt) -> None:
        for field in ('body', 'orelse', 'finalbody'):
            statements = getattr(node, field, [])
            noted = []
            for each in statements:
                call = ast.parse(f'__note__({each.lineno})').body[0]
                noted += [ast.copy_location(call, each), each]
                if not isinstance(each, (ast.FunctionDef, ast.ClassDef)):
                    self._add_notes(each)
            if noted and isinstance(statements[0], ast.Expr) and isinstance(
                    statements[0].value, ast.Constant):
                del noted[0]  # a docstring stays the first
            setattr(node, field, noted)


def path_of(module: str) -> Path:
    return ROOT / 'gdrq_mm' / f'{module}.py'


def trace(path: Path) -> None:
    """Write ``{module: {test: (CPU seconds, lines)}}``."""

    def run():
        tracer = Tracer()
        sys.meta_path[:0] = map(tracer.noting, MODULES)
        pytest_main([f'tests/{each}' for each in TESTS], tracer)
        path.write_text(json.dumps({
            module: {test: (tracer.seconds[test], sorted(lines))
                     for test, lines in tests.items()
                     if test in tracer.seconds
                     and test not in tracer.failed}
            for module, tests in tracer.lines.items()}))
        Path(f'{path}.failed').write_text('\n'.join(sorted(tracer.failed)))
        return 0

    forked(run, 7200, 7200)
    failed = Path(f'{path}.failed').read_text()
    if failed:
        print(f'not used, they fail without any mutant:\n{failed}',
              file=sys.stderr, flush=True)


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module from a changed tree.

    Args:
        module (str): One of ``MODULES``.
        tree (ast.Module): Its source, changed.
        given (dict): Names that it finds defined.
    """

    def __init__(self, module: str, tree: ast.Module, given: dict) -> None:
        self.name = 'gdrq_mm.' + module.replace('/', '.')
        self.path, self.tree, self.given = path_of(module), tree, given

    def find_spec(self, fullname, path=None, target=None):
        if fullname == self.name:
            return importlib.util.spec_from_file_location(
                fullname, self.path, loader=self)

    def exec_module(self, module):
        module.__dict__.update(self.given)
        exec(compile(self.tree, str(self.path), 'exec'), module.__dict__)


def is_found(module: str, mutant: Mutant, tests: List[str],
             seconds: float) -> bool:
    """Whether one of the tests fails."""

    def run():
        torch.set_num_threads(1)
        sys.meta_path.insert(0, Replaced(module, mutant.tree, {}))
        return pytest_main(tests, stop=True)

    return forked(run, 30 + 5 * seconds) != 0


def tests_of(module: str, mutant: Mutant, covered: dict) -> List[str]:
    """The tests that may find a mutant: the fastest first, those of its room
    as if they took twice as long as its own, others eight times."""
    room, _, own = module.partition('/')
    own = own.partition('/')[0]

    def order(test):
        return covered[test][0] * (
            1 if f'{room}/test_{own}' in test or f'test_{room}' in test else
            2 if f'/{room}/' in test else 8)

    every = [test for test in sorted(covered, key=order)
             if covered[test][0] <= SLOWEST and covered[test][1]]
    hit = every  # of a line that runs at import
    for first, last in mutant.spans:
        those = [test for test in every
                 if any(first <= line <= last for line in covered[test][1])]
        if those:
            hit = those
            break
    seconds = itertools.accumulate(covered[test][0] for test in hit)
    return [test for test, total in zip(hit, seconds) if total <= MOST]


def run_module(module: str, chosen: List[Mutant], covered: dict,
               figures: dict, save: Callable[[], None]) -> None:
    """Run mutants of a module.

    Args:
        module (str): One of ``MODULES``.
        chosen (list[Mutant]): Of its mutants.
        covered (dict): Lines of its tests, see :func:`trace`.
        figures (dict): ``run``, ``found`` and names of ``missed`` so far;
            changed in place, the first ``run`` are not run again.
        save (callable): Called after every mutant.
    """
    for mutant in chosen[figures['run']:]:
        tests = tests_of(module, mutant, covered)
        seconds = sum(covered[test][0] for test in tests)
        if not is_found(module, mutant, tests, seconds):
            figures['missed'].append(mutant.name)
            print(f'{module}:{mutant.spans[0][0]}: {mutant.name} '
                  f'({len(tests)} tests)', file=sys.stderr, flush=True)
        figures['run'] += 1
        figures['found'] = figures['run'] - len(figures['missed'])
        save()
    print(f'{module}: {figures["found"]} of {figures["run"]} found',
          file=sys.stderr, flush=True)


def draw(module: str, every: List[Mutant], share: float, seed: int
         ) -> List[Mutant]:
    """A share of a module's mutants, in the order of their places."""
    drawn = random.Random(f'{seed} {module}').sample(
        range(len(every)), math.ceil(share * len(every)))
    return [every[index] for index in sorted(drawn)]


def read(path: Optional[Path]) -> dict:
    """Figures of a file, by module."""
    return json.loads(path.read_text()) if path and path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('modules', nargs='*', help=', '.join(MODULES))
    parser.add_argument('--share', type=float, default=1.,
                        help='of the mutants, drawn')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--again', action='store_true',
                        help='run only those that the JSON says are missed')
    parser.add_argument('--lines', help='file to keep which lines each test '
                                        'executes in; traced if it is absent')
    parser.add_argument('--json', type=Path,
                        help='where figures are kept; those of modules that '
                             'are not run stay')
    args = parser.parse_args()
    for name in IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(args.lines or f'{folder}/lines.json')
        if not lines.exists():
            trace(lines)
        covered = json.loads(lines.read_text())
    known = read(args.json)
    part = args.json and args.json.with_name(f'{args.json.name}.part')
    done = {} if args.again else read(part)

    def save():
        if part:
            part.write_text(json.dumps(done, indent=1) + '\n')

    for module in args.modules or MODULES:
        every = mutants_of(path_of(module).read_text())
        if args.again:
            missed = known.get(module, {}).get('missed', [])
            again = dict(run=0, found=0, missed=[])
            run_module(module, [mutant for mutant in every
                                if mutant.name in missed],
                       covered[module], again, lambda: None)
            if missed:
                done[module] = dict(
                    known[module], missed=again['missed'],
                    found=known[module]['run'] - len(again['missed']))
            continue
        kind = dict(mutants=len(every), share=args.share, seed=args.seed)
        figures = done.get(module, {})
        if any(figures.get(key) != value for key, value in kind.items()):
            figures = done[module] = dict(kind, run=0, found=0, missed=[])
        run_module(module, draw(module, every, args.share, args.seed),
                   covered.get(module, {}), figures, save)
    known.update(done)
    if args.json:
        args.json.write_text(json.dumps(known, indent=1) + '\n')
        part.unlink(missing_ok=True)
    mutants, run, found = (
        sum(module[key] for module in known.values())
        for key in ('mutants', 'run', 'found'))
    print(f'{found} of {run} mutants found ({found / max(run, 1):.1%}), of '
          f'{mutants} there are')


if __name__ == '__main__':
    main()
