"""What was asked for, and the configs as the demo runs them."""
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List

from jobs.checkout import ROOT, shown
from jobs.records import JobError, config_hash, read_json
from mmengine.config import Config, DictAction

from .tasks import (
    DEFAULT_RUNS,
    FLOAT,
    QUANTIZED,
    QUICK_OPTIONS,
    START,
    TASKS,
)

STARTUP = 12.  # seconds, of a process that imports torch and an mm package


@dataclass(frozen=True)
class Settings:
    """What was asked for; ``data`` and ``work_dir`` are absolute."""
    tasks: List[str]
    seeds: List[int]
    work_dir: Path
    data: Path
    quick: bool = False
    quantized: List[str] = field(default_factory=lambda: list(DEFAULT_RUNS))

    @property
    def runs(self) -> List[str]:
        return [START, FLOAT, *self.quantized]


class Configs:
    """Configs as the demo runs them: its options merged in."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._loaded: Dict[tuple, Config] = {}

    def path(self, task: str, run: str) -> str:
        return TASKS[task].configs[run]

    def get(self, task: str, run: str) -> Config:
        if (task, run) not in self._loaded:
            path = ROOT / self.path(task, run)
            if not path.exists():
                raise JobError(f'the config {path} is missing; the checkout '
                                'is incomplete, "git status" shows it')
            with warnings.catch_warnings():
                # Of mmengine, while it looks up an inherited package.
                warnings.filterwarnings('ignore', '.*pkg_resources')
                cfg = Config.fromfile(str(path), import_custom_modules=False)
            cfg.merge_from_dict(parse_options(self.options(task)))
            self._loaded[task, run] = cfg
        return self._loaded[task, run]

    def options(self, task: str) -> List[str]:
        """``--cfg-options`` of every training and test of a task."""
        folder = shown(self.settings.data / TASKS[task].folder)
        # A folder that ends in a slash, as the configs have it.
        options = [f'{split}_dataloader.dataset.data_root={folder}/'
                   for split in ('train', 'val', 'test')]
        return options + (QUICK_OPTIONS[task] if self.settings.quick else [])

    def hash(self, task: str, run: str) -> str:
        return config_hash(self.get(task, run).to_dict())

    def length(self, task: str, run: str) -> int:
        """Epochs or iterations of a training."""
        train_cfg = self.get(task, run).train_cfg
        return train_cfg.get('max_epochs') or train_cfg.max_iters

    def max_epochs(self, task: str, run: str) -> int:
        return self.get(task, run).train_cfg.get('max_epochs') or 1

    def cost(self, stage) -> float:
        """A guess of its seconds on one core."""
        if stage.kind != 'train':
            return 2 * STARTUP if stage.kind == 'look' else STARTUP
        steps = self.length(stage.task, stage.run)
        if self.get(stage.task, stage.run).train_cfg.get('max_epochs'):
            batch = self.get(stage.task, stage.run).train_dataloader.batch_size
            steps *= -(-self.stamp(stage.task)['counts'][0] // batch)
        slower = 1.15 if stage.run in QUANTIZED else 1.
        return STARTUP + steps * TASKS[stage.task].seconds * slower

    def stamp(self, task: str) -> dict:
        """What the dataset was made with."""
        path = self.settings.data / TASKS[task].folder / 'demo_data.json'
        stamp = read_json(path)
        if stamp is None:
            raise JobError(f'{path} cannot be read; make the data with '
                            'tools/dataset_converters/make_demo_data.py')
        return stamp


def parse_options(options: List[str]) -> dict:
    """``--cfg-options`` as the mm tools read them."""
    parsed = (option.partition('=') for option in options)
    return {key: DictAction._parse_iterable(value)
            for key, _, value in parsed}
