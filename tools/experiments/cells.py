"""What an experiment is made of: cells, tables of them, claims about them."""
import copy
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from demo_stages.tasks import TASKS
from jobs.checkout import ROOT, gdrq_mm_version
from jobs.records import config_hash, file_hash, read_json

CONFIG_DATA = 'data/'  # where all configs look for their data
# What a dataset says of itself, by what made it.
STAMPS = ('conversion.json', 'demo_data.json')


@dataclass(frozen=True)
class Family:
    """Models of one kind; the first part of a cell's name.

    Args:
        title (str): Model and data.
        task (str): Task of the demo, which knows its metric.
        data (str): Folder of the data, inside the data folder.
    """
    title: str
    task: str
    data: str


@dataclass(frozen=True)
class Cell:
    """A model that is trained and tested, once a seed.

    Args:
        name (str): '<family>/<what>', also its folder.
        config (str): Relative to the checkout.
        options (dict): Changes of the config.
        start (str, optional): Cell whose model this one begins with.
        reference (str, optional): Cell that the drop is measured against:
            a float model that was trained as long.
        kind (str): 'train'; 'test', without training; or 'calibrate', with
            thresholds and batch normalization from some batches.
            Defaults to 'train'.
        latent (bool): Take only the float weights of ``start``, whatever its
            bits. Defaults to False.
        demo (str, optional): Run of the demo that is the same model.
        shared (bool): All seeds of other cells begin with one training of
            this one, that of seed 0. Defaults to False.
    """
    name: str
    config: str
    options: dict = field(default_factory=dict)
    start: Optional[str] = None
    reference: Optional[str] = None
    kind: str = 'train'
    latent: bool = False
    demo: Optional[str] = None
    shared: bool = False

    @property
    def family(self) -> str:
        return self.name.partition('/')[0]

    def seed_for(self, seed: int) -> int:
        """The seed of its own training that a seed stands for."""
        return 0 if self.shared else seed


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        label (str): Its head.
        cells (sequence[str or None]): One per column; None leaves it empty.
        show (str): 'metric', or 'drop' against the reference.
        paper (sequence[str]): What the paper has there.
    """
    label: str
    cells: Sequence[Optional[str]]
    show: str = 'drop'
    paper: Sequence[str] = ()


@dataclass(frozen=True)
class Claim:
    """A statement that the results confirm, contradict, or do neither.

    Args:
        words (str): The paper's, or those of a goal.
        better (sequence[tuple[str, str]]): Pairs of cells; the first one has
            the smaller drop.
        equal (sequence[tuple[str, str]]): Pairs of cells with about the same
            metric.
        limits (dict[str, float]): Cell -> drop that it must not exceed.
    """
    words: str
    better: Sequence[Tuple[str, str]] = ()
    equal: Sequence[Tuple[str, str]] = ()
    limits: Dict[str, float] = field(default_factory=dict)

    @property
    def cells(self) -> List[str]:
        return [*(name for pair in (*self.better, *self.equal)
                  for name in pair), *self.limits]


@dataclass(frozen=True)
class Study:
    """A table, and what it is to show.

    Args:
        title (str): What it repeats or compares.
        corner (str): Head of the first column.
        columns (sequence[str]): Heads of the others.
        rows (sequence[Row]): The table.
        claims (sequence[Claim]): What should follow from it.
        seeds (int): Trainings of each cell. Defaults to 3.
        first_seed (int): Seed of the first of them. Defaults to 0.
    """
    title: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[Row]
    claims: Sequence[Claim] = ()
    seeds: int = 3
    first_seed: int = 0

    def all_seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    def cells(self, cells: Dict[str, Cell]) -> List[str]:
        """All that it needs, in the order of :func:`with_needs`."""
        return with_needs(cells, (
            name for part in (*self.rows, *self.claims)
            for name in part.cells if name))

    def tasks(self, cells: Dict[str, Cell], seeds: Iterable[int]
              ) -> List[Tuple[str, int]]:
        """What to train for some seeds: cell and seed, in order."""
        return list(dict.fromkeys(
            (name, cells[name].seed_for(seed)) for seed in seeds
            for name in self.cells(cells)))


def with_needs(cells: Dict[str, Cell], names: Iterable[str]) -> List[str]:
    """Cells and those they need, each behind the one it begins with.

    Args:
        cells (dict[str, Cell]): Every cell there is.
        names (iterable of str): The cells that are wanted.
    """
    found: List[str] = []

    def add(name):
        if name is None or name in found:
            return
        add(cells[name].start)
        add(cells[name].reference)
        found.append(name)

    for name in names:
        add(name)
    return found


class Configs:
    """Configs of cells, as they run; each file is read once.

    Args:
        data (Path): Folder of the datasets.
    """

    def __init__(self, data: Path) -> None:
        self.data = data
        self._files = {}

    def get(self, cell: Cell, seed: int):
        """The config of a cell, without ``work_dir`` and ``load_from``."""
        from mmengine.config import Config
        if cell.config not in self._files:
            with warnings.catch_warnings():
                # Of mmengine, while it looks up an inherited package.
                warnings.filterwarnings('ignore', '.*pkg_resources')
                self._files[cell.config] = Config.fromfile(
                    ROOT / cell.config, import_custom_modules=False)
        cfg = copy.deepcopy(self._files[cell.config])
        cfg.merge_from_dict(copy.deepcopy(cell.options))
        # One process does it all: it is one of several side by side.
        for split in ('train', 'test'):
            cfg[f'{split}_dataloader'].update(
                num_workers=0, persistent_workers=False)
        cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
        cfg.default_hooks.checkpoint = None  # the last model is saved
        cfg.randomness = dict(seed=seed)
        return cfg

    def at_data(self, cfg):
        """The config with this machine's data folder in it."""
        for split in ('train', 'test'):
            dataset = cfg[f'{split}_dataloader'].dataset
            assert dataset.data_root.startswith(CONFIG_DATA)
            dataset.data_root = str(
                self.data / dataset.data_root.removeprefix(CONFIG_DATA)) + '/'
        return cfg

    def stamp(self, family: Family) -> Optional[dict]:
        """What the dataset of a family says of itself, None without it."""
        found = (read_json(self.data / family.data / name) for name in STAMPS)
        return next(filter(None, found), None)

    def hash(self, cell: Cell, seed: int) -> str:
        """Hash of the text of the whole config."""
        return config_hash(self.get(cell, seed).to_dict())

    def inputs(self, cell: Cell, seed: int, family: Family,
               start: Optional[Path]) -> dict:
        """All that the result of a cell depends on."""
        return dict(
            config=self.hash(cell, seed), seed=seed, kind=cell.kind,
            latent=cell.latent, data=self.stamp(family),
            load_from=start and file_hash(start), gdrq_mm=gdrq_mm_version())


def from_demo(cell: Cell, seed: int, folders: Sequence[Path], data: dict,
              config_hash: Callable) -> Optional[Tuple[dict, dict]]:
    """The result of a cell that the demo has trained already.

    Args:
        cell (Cell): With ``demo``.
        seed (int): Seed of the training.
        folders (sequence[Path]): Work dirs of demos.
        data (dict): What the dataset says of itself.
        config_hash (callable): Hash of a task and a run, as the demo has it.

    Returns:
        tuple[dict, dict]: The result, and the versions that gave it.
    """
    task, run = cell.demo.split('/')
    for root in folders:
        train, test = (read_json(root / task / f'seed{seed}' / run
                                 / f'{kind}.json') or {}
                       for kind in ('train', 'test'))
        summary = read_json(root / 'summary.json')
        if (train.get('status'), test.get('status')) != ('done', 'done') \
                or not summary \
                or train['inputs']['gdrq_mm'] != gdrq_mm_version() \
                or train['inputs']['data'] != data \
                or train['inputs']['config'] != config_hash(task, run):
            continue
        checkpoint = root / train['results']['checkpoint']
        # A test of another training may be left from before.
        if checkpoint.exists() and test['inputs'].get(
                'checkpoint') == file_hash(checkpoint):
            return dict(
                metric=test['results']['metric'], by='python tools/demo.py',
                seconds=round(train['seconds'] + test['seconds'], 1),
                checkpoint=str(checkpoint)), summary['versions']
    return None


def metric_of(metrics: dict, task: str) -> float:
    """The metric of a task, in points."""
    return float(metrics[TASKS[task].metric] * TASKS[task].points)
