"""Run cells that have no result yet, several processes side by side."""
import os
import shutil
import signal
import sys
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Dict, List, Optional

from demo_stages.process import ROOT, shown
from demo_stages.progress import format_seconds
from demo_stages.records import decide, read_json, write_json
from demo_stages.run_configs import Configs as DemoConfigs
from demo_stages.run_configs import Settings as DemoSettings
from demo_stages.summary import versions

from .cells import Cell, Configs, Family, from_demo
from .worker import Worker


@dataclass(frozen=True)
class Settings:
    """What was asked for; all paths are absolute.

    Args:
        cells (dict[str, Cell]): Every cell there is.
        families (dict[str, Family]): Theirs.
        work_dir (Path): Where results are.
        data (Path): Where datasets are.
        demos (list[Path]): Work dirs of demos, whose models are taken over.
        jobs (int): Processes side by side. Defaults to 1.
        function (str): What runs a cell. Defaults to the training.
    """
    cells: Dict[str, Cell]
    families: Dict[str, Family]
    work_dir: Path
    data: Path
    demos: List[Path] = field(default_factory=list)
    jobs: int = 1
    function: str = 'experiments.train_cell:run_cell'

    def folder(self, name: str, seed: int) -> Path:
        """Folder of a cell's files; its record and log lie beside it."""
        return self.work_dir / name / f'seed{seed}'

    def record_path(self, name: str, seed: int) -> Path:
        return self.folder(name, seed).with_suffix('.json')


class Engine:
    """Cells and seeds in order, each behind the one that it begins with.

    Args:
        settings (Settings): What was asked for.
        tasks (list[tuple[str, int]]): Cell and seed.
    """

    def __init__(self, settings: Settings, tasks) -> None:
        self.settings = settings
        self.tasks = list(dict.fromkeys(tasks))
        self.configs = Configs(settings.data)
        self.demo_configs = DemoConfigs(DemoSettings(
            [], [], settings.work_dir, ROOT / 'data' / 'demo'))
        self.records, self.failed, self.seconds = {}, {}, []

    def run(self) -> Dict[tuple, str]:
        """Run all; one that fails stops only those that begin with it.

        Returns:
            dict[tuple, str]: Why cells failed.
        """
        waiting, workers = list(self.tasks), []
        try:
            while waiting or any(worker.task for worker in workers):
                self._hand_out(waiting, workers)
                busy = {worker.conn: worker for worker in workers
                        if worker.task}
                # Without any, ``wait`` would wait for ever.
                for conn in connection.wait(list(busy)) if busy else ():
                    worker = busy[conn]
                    self._take(worker, worker.result())
                    if not worker.process.is_alive():
                        workers.remove(worker)
        finally:
            for worker in workers:
                worker.end()
        return self.failed

    def _hand_out(self, waiting, workers) -> None:
        """Give every idle process a cell; note cells that need none."""
        for task in list(waiting):
            cell, seed = self.settings.cells[task[0]], task[1]
            before = (cell.start, seed)
            if cell.start and before in self.failed:
                waiting.remove(task)
                self._fail(task, f'{cell.start} failed')
            elif cell.start and before not in self.tasks:
                waiting.remove(task)
                self._fail(task, f'{cell.start} was not asked for')
            elif cell.start and before not in self.records:
                continue
            else:
                try:
                    if not self._is_done(cell, seed):
                        worker = self._idle(workers)
                        if worker is None:
                            return
                        self._begin(worker, cell, seed)
                except Exception as error:  # of this cell alone
                    self._fail(task, f'{type(error).__name__}: {error}')
                waiting.remove(task)

    def _idle(self, workers) -> Optional[Worker]:
        """A process for the next cell, None where all are busy."""
        workers[:] = [worker for worker in workers
                      if worker.task or worker.process.is_alive()]
        for worker in workers:
            if not worker.task:
                return worker
        if len(workers) >= self.settings.jobs:
            return None
        workers.append(Worker(self.settings.function))
        return workers[-1]

    def _is_done(self, cell: Cell, seed: int) -> bool:
        path = self.settings.record_path(cell.name, seed)
        inputs, record = self._inputs(cell, seed), read_json(path)
        if decide(record, inputs, ROOT)[0] != 'done':
            found = cell.demo and from_demo(
                cell, seed, self.settings.demos, inputs['data'],
                self.demo_configs.text_hash)
            if not found:
                return False
            record = self._write(cell, seed, inputs, *found)
            self._say(cell.name, seed,
                      f'{record["results"]["metric"]:.2f}, of the demo')
        self.records[cell.name, seed] = record
        return True

    def _checkpoint(self, cell: Cell, seed: int):
        return cell.start and self.records[cell.start, seed]['results'][
            'checkpoint']

    def _inputs(self, cell: Cell, seed: int) -> dict:
        return self.configs.inputs(
            cell, seed, self.settings.families[cell.family],
            self._checkpoint(cell, seed))

    def _begin(self, worker: Worker, cell: Cell, seed: int) -> None:
        folder = self.settings.folder(cell.name, seed)
        path = self.settings.record_path(cell.name, seed)
        inputs = self._inputs(cell, seed)
        # What was interrupted goes on from its last checkpoint.
        if decide(read_json(path), inputs, ROOT)[0] != 'continue':
            shutil.rmtree(folder, ignore_errors=True)
            write_json(path, dict(status='begun', inputs=inputs))
        folder.mkdir(parents=True, exist_ok=True)
        cfg = self.configs.at_data(self.configs.get(cell, seed))
        worker.begin((cell.name, seed), dict(
            name=cell.name, seed=seed, config=cfg.to_dict(),
            task=self.settings.families[cell.family].task,
            folder=str(folder), start=self._checkpoint(cell, seed),
            kind=cell.kind, latent=cell.latent), folder.with_suffix('.log'))

    def _take(self, worker: Worker, result: dict) -> None:
        (name, seed), worker.task = worker.task, None
        if 'error' in result:
            log = shown(self.settings.folder(name, seed).with_suffix('.log'))
            self._fail((name, seed), f'{result["error"]} (log: {log})')
            return
        cell, results = self.settings.cells[name], result['results']
        self.records[name, seed] = self._write(
            cell, seed, self._inputs(cell, seed), results, versions())
        self.seconds.append(results['seconds'])
        self._say(name, seed, f'{results["metric"]:.2f}, '
                  f'{format_seconds(results["seconds"])}')

    def _write(self, cell: Cell, seed: int, inputs: dict,
               results: dict, made_by: dict) -> dict:
        record = dict(
            status='done', inputs=inputs, results=results,
            outputs=[results['checkpoint']] if 'checkpoint' in results
            else [], cell=dict(config=cell.config, options=cell.options,
                               start=cell.start, kind=cell.kind,
                               latent=cell.latent), versions=made_by)
        write_json(self.settings.record_path(cell.name, seed), record)
        return record

    def _fail(self, task, why: str) -> None:
        self.failed[task] = why
        self._say(*task, f'FAILED: {why}')

    def _say(self, name: str, seed: int, text: str) -> None:
        over = len(self.records) + len(self.failed)
        left = ''
        if self.seconds:
            each = sum(self.seconds) / len(self.seconds)
            left = ', about ' + format_seconds(
                (len(self.tasks) - over) * each / self.settings.jobs) + ' left'
        print(f'[{over}/{len(self.tasks)}{left}] {name} seed {seed}: {text}',
              flush=True)


def prepare_environment() -> None:
    """One thread a process; freed memory is kept for the next tensor.

    Fresh memory costs more than the arithmetic of small models on a CPU.
    """
    for name, value in dict(OMP_NUM_THREADS=1, MALLOC_TRIM_THRESHOLD_=2**28,
                            MALLOC_MMAP_THRESHOLD_=2**25).items():
        os.environ.setdefault(name, str(value))
    # A plain kill ends the processes as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
