"""Cells and seeds as jobs, each behind the one that it begins with."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional

from demo_stages.run_configs import Configs as DemoConfigs
from demo_stages.run_configs import Settings as DemoSettings
from jobs.checkout import ROOT, versions
from jobs.engine import Engine, Job, Task
from jobs.process import MODELS
from jobs.records import read_done, write_json

from .cells import Cell, Configs, Family, from_demo
from .starts import published_starts, take_over


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
        starts (dict[str, dict]): Cell -> its published model, which is taken
            over. Defaults to those of model_zoo/.
    """
    cells: Dict[str, Cell]
    families: Dict[str, Family]
    work_dir: Path
    data: Path
    demos: List[Path] = field(default_factory=list)
    jobs: int = 1
    function: str = 'experiments.train_cell:run_cell'
    starts: Dict[str, dict] = field(default_factory=published_starts)

    def folder(self, name: str, seed: int) -> Path:
        """Folder of a cell's files; its record and log lie beside it."""
        return self.work_dir / name / f'seed{seed}'

    def record_path(self, name: str, seed: int) -> Path:
        return self.folder(name, seed).with_suffix('.json')


def run_cells(settings: Settings, tasks) -> Dict[str, str]:
    """Run all that have no result yet.

    Args:
        settings (Settings): What was asked for.
        tasks (list[tuple[str, int]]): Cell and seed.

    Returns:
        dict[str, str]: Why cells failed, by :func:`name_of`.
    """
    plan = Plan(settings)
    return Engine([plan.job(*task) for task in tasks], settings.jobs,
                  preload=MODELS).run()


def name_of(cell: str, seed: int) -> str:
    return f'{cell} seed {seed}'


class Plan:
    """What is run for a cell, and what it is run with.

    Args:
        settings (Settings): What was asked for.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.configs = Configs(settings.data)
        self.demo_configs = DemoConfigs(DemoSettings(
            [], [], settings.work_dir, ROOT / 'data' / 'demo'))

    def job(self, name: str, seed: int) -> Job:
        cells = self.settings.cells
        cell = cells[name]
        start = cell.start and name_of(cell.start,
                                       cells[cell.start].seed_for(seed))
        return Job(
            name_of(name, seed), self.settings.folder(name, seed),
            lambda records: self.prepare(
                cell, seed, start and records[start]),
            [start] if start else [],
            tell=lambda record: f'{record["results"]["metric"]:.2f}')

    def prepare(self, cell: Cell, seed: int,
                start: Optional[dict]) -> Task:
        """How to run a cell; what a demo or the model zoo has of it is taken
        over.

        Args:
            cell (Cell): The cell.
            seed (int): Its seed.
            start (dict, optional): Record of the cell that it begins with.
        """
        start = start and start['results']['checkpoint']
        family = self.settings.families[cell.family]
        inputs = self.configs.inputs(cell, seed, family, start)
        path = self.settings.record_path(cell.name, seed)
        if read_done(path, inputs, ROOT) is None:
            found = from_demo(
                cell, seed, self.settings.demos, inputs['data'],
                self.demo_configs.hash) if cell.demo else take_over(
                    cell, seed, self.settings.starts.get(cell.name), inputs)
            if found:
                write_json(path, dict(status='done', inputs=inputs,
                                      **kept(cell, *found)))
        cfg = self.configs.at_data(self.configs.get(cell, seed))
        arguments = dict(
            name=cell.name, seed=seed, config=cfg.to_dict(),
            task=family.task, folder=str(self.settings.folder(
                cell.name, seed)), start=start, kind=cell.kind,
            latent=cell.latent)
        # What was interrupted goes on from its last checkpoint.
        return Task(inputs, self.settings.function, arguments,
                    lambda results: kept(cell, results, versions()),
                    resume=arguments if cell.kind == 'train' else None,
                    epochs=cfg.train_cfg.get('max_epochs') or 1)


def kept(cell: Cell, results: dict, made_by: dict) -> dict:
    """What the record of a cell has, besides its inputs."""
    return dict(
        results=results,
        outputs=[results['checkpoint']] if 'checkpoint' in results else [],
        cell=dict(config=cell.config, options=cell.options, start=cell.start,
                  kind=cell.kind, latent=cell.latent), versions=made_by)
