"""What is compared: configs of all cells, checked before anything runs."""
import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from jobs.checkout import gdrq_mm_version
from jobs.engine import Job, Task, sentence
from jobs.records import config_hash, file_hash, read_json
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from gdrq_mm import quantize_
from gdrq_mm.analysis import first_and_last
from gdrq_mm.checkpoint import NAME, CheckpointError
from gdrq_mm.config import QuantConfig
from gdrq_mm.openmmlab.head_outputs import find_head_outputs
from gdrq_mm.openmmlab.hook import GDRQHook
from gdrq_mm.openmmlab.metrics import typed_parts, with_test
from gdrq_mm.openmmlab.publish import (
    gdrq_hooks,
    load_all,
    quantization_of,
    type_name,
)
from gdrq_mm.openmmlab.quantized_model import float_model_config
from gdrq_mm.openmmlab.reading import read_checkpoint, weights_of
from gdrq_mm.openmmlab.scopes import (
    build_model,
    example_batch,
    image_channels,
    read_config,
    scope_of,
)
from gdrq_mm.plan import QuantReport, make_plan
from gdrq_mm.training import DistillConfig, get_state

from .schemes import (
    ENDS_BITS,
    OF_MODEL,
    at_bits,
    find_scheme,
    hook_of,
    short_name,
)

FLOAT, START, CALIBRATED = 'float', 'start', 'calibrated'
# Parts of the names of hooks and schedulers.
ON_VALIDATIONS = ('EarlyStopping', 'ReduceOnPlateau')


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Args:
        config (str): Config that fine-tunes the float model.
        checkpoint (str): Checkpoint of the float model.
        schemes (sequence[str]): Names, see :func:`find_scheme`.
        bits (sequence[tuple[int, int]]): Pairs for weights and activations.
        seeds (sequence[int]): One training of every cell a seed.
        work_dir (Path): Where results are.
        batches (int): Batches of the calibration. Defaults to 32.
        options (dict): Changes of the config.
    """
    config: str
    checkpoint: str
    schemes: Sequence[str]
    bits: Sequence[Tuple[int, int]]
    seeds: Sequence[int]
    work_dir: Path
    batches: int = 32
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One row of the table: the float model, or a scheme at some bits.

    Args:
        scheme (str): Name of the scheme, or 'float'.
        bits (tuple[int, int], optional): Bits of weights and activations.
        quantization (dict, optional): The whole ``quantization``.
        weight_levels (int, optional): Levels of weights, but for first and
            last layers.
        policy (str): Which layers have which bits.
        hook (dict): Other arguments of GDRQHook.
    """
    scheme: str
    bits: tuple = ()
    quantization: dict = field(default_factory=dict)
    weight_levels: int = 0
    policy: str = ''
    hook: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return '-'.join([short_name(self.scheme),
                         'w{}a{}'.format(*self.bits)]
                        ) if self.bits else self.scheme


class Comparison:
    """All cells and their jobs.

    Args:
        settings (Settings): What was asked for.

    Raises:
        ValueError: The config has no evaluator, the checkpoint is of another
            model or quantized already, a scheme is unknown or not possible
            at these bits.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        _check_names(settings.schemes)
        cfg = read_config(settings.config, copy.deepcopy(settings.options))
        # Pure Python configs may have none; jobs and their runners ask it.
        cfg.default_scope = scope_of(cfg)
        self.hook, shared = _split(cfg)
        self.cfg = with_test(cfg)
        check_training(cfg)
        _check_no_validation(cfg)
        import_modules_from_strings(**self.cfg.custom_imports)
        model = build_model(self.cfg)
        self._check_checkpoint(model)
        if shared is None:
            shared = dict(rules=ends_of(self.cfg, model))
        self.cells = [Cell(FLOAT)] + [
            self._cell(model, scheme, bits, shared)
            for bits in settings.bits for scheme in settings.schemes]
        self.inputs = dict(checkpoint=file_hash(settings.checkpoint),
                           gdrq_mm=gdrq_mm_version())

    def _check_checkpoint(self, model) -> None:
        path = self.settings.checkpoint
        weights = weights_of(read_checkpoint(path))
        if f'{NAME}.schemes' in weights:
            raise ValueError(f'{path} is quantized already; give the '
                             'checkpoint of the float model')
        try:
            load_all(model, weights)
        except CheckpointError as error:
            raise ValueError(f'{path} does not fit {self.settings.config}: '
                             f'{error}') from None

    def _cell(self, model, scheme, bits, shared) -> Cell:
        quantization = at_bits(find_scheme(scheme), bits, shared)
        copied = copy.deepcopy(model)
        try:
            quantize_(copied, quantization)
        except ValueError as error:
            raise ValueError(f'{scheme} at {list(bits)}: {error}') from None
        state = get_state(copied)
        if state is None:
            raise ValueError(f'{scheme} quantizes nothing in '
                             f'{self.settings.config}')
        weight = QuantConfig.from_dict(quantization).weight
        hook = {**self.hook, **hook_of(scheme)}
        try:
            GDRQHook(**{key: value for key, value in hook.items()
                        if key not in ('type', 'priority')})
            if hook.get('distill') is not None:
                find_head_outputs(model, DistillConfig.from_dict(
                    hook['distill']).outputs)
        except (TypeError, ValueError) as error:
            raise ValueError(f'{scheme}: {error}') from None
        return Cell(scheme, bits, quantization, weight.num_levels(),
                    QuantReport(state.plans).policy(), hook)

    def config(self, cell: Cell, seed: int) -> Config:
        """The config of a cell, without ``work_dir`` and ``load_from``."""
        cfg = copy.deepcopy(self.cfg)
        if cell.quantization:
            cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), dict(
                cell.hook, quantization=copy.deepcopy(cell.quantization))]
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
        return cfg

    def jobs(self) -> List[Job]:
        """All of them, the first seed of every cell first."""
        found = [self.job(Cell(START), self.settings.seeds[0], 'test')]
        for seed in self.settings.seeds:
            for cell in self.cells:
                if cell.quantization and seed == self.settings.seeds[0]:
                    found.append(self.job(cell, seed, 'calibrate'))
                found.append(self.job(cell, seed, 'train'))
        return found

    def check_work_dir(self, jobs: Sequence[Job]) -> None:
        """Trainings of another comparison there would be lost.

        Args:
            jobs (sequence[Job]): All that were asked for.

        Raises:
            ValueError: Some are done with another config, checkpoint or
                version.
        """
        lost = {}
        for job in jobs:
            changed = self.changed(job)
            if changed and job.folder.name != CALIBRATED:
                lost[job.name] = changed
        if lost:
            names, kinds = list(lost), dict.fromkeys(sum(lost.values(), []))
            raise ValueError(
                f'{self.settings.work_dir} has a comparison of another '
                f'{", ".join(kinds)} ({", ".join(names[:3])}'
                f'{", ..." if names[3:] else ""}), which would be removed: '
                'give another --work-dir, or remove it yourself')

    @staticmethod
    def changed(job: Job) -> List[str]:
        """Inputs that a finished job had otherwise."""
        before = read_json(job.record_path) or {}
        now = job.prepare({}).inputs
        return [key for key, value in before.get('inputs', {}).items()
                if now.get(key) != value and before.get('status') == 'done']

    def job(self, cell: Cell, seed: int, kind: str) -> Job:
        if kind != 'train':  # one for all seeds, whichever comes first
            seed = 0
        name = job_name(cell, seed, kind)
        folder = self.settings.work_dir / name

        def prepare(records: Dict[str, dict]) -> Task:
            cfg = self.config(cell, seed).to_dict()
            inputs = dict(self.inputs, seed=seed, kind=kind,
                          config=config_hash(cfg))
            if kind == 'calibrate':
                inputs['batches'] = self.settings.batches
            arguments = dict(
                name=name, kind=kind, config=cfg, folder=str(folder),
                batches=self.settings.batches,
                start=str(Path(self.settings.checkpoint).resolve()))
            return Task(
                inputs, 'comparing.cell:run_cell', arguments,
                lambda results: dict(results=results, outputs=[
                    # The work dir may be moved.
                    os.path.relpath(each, self.settings.work_dir)
                    for each in results.pop('outputs')]),
                resume=arguments if kind == 'train' else None,
                mode='train' if kind == 'train' else 'test',
                epochs=self.cfg.train_cfg.get('max_epochs') or 1)

        return Job(name, folder, prepare, tell=lambda record: ', '.join(
            f'{key} {value:.4g}' for key, value in list(
                record['results']['metrics'].items())[:3]))


def _check_names(schemes: Sequence[str]) -> None:
    """Results lie in folders with the names of schemes."""
    found = {}
    for scheme in schemes:
        other = found.setdefault(short_name(scheme), scheme)
        if other != scheme:
            raise ValueError(
                f'the schemes {other} and {scheme} have one name, '
                f'{short_name(scheme)}, where their results would lie; rename '
                'one of the files')


def job_name(cell: Cell, seed: int, kind: str) -> str:
    """'lsq-w2a4/seed0', 'lsq-w2a4/calibrated', 'start/test'"""
    last = dict(train=f'seed{seed}', calibrate=CALIBRATED, test='test')
    return f'{cell.name}/{last[kind]}'


def _split(cfg: Config) -> Tuple[dict, Optional[dict]]:
    """Make a config float; its hook's other settings, and what it says of
    layers of this model (None where it quantizes nothing)."""
    hooks = [hook for hook in cfg.get('custom_hooks') or ()]
    ours = gdrq_hooks(cfg)
    shared = None
    if ours or cfg.model.get('quantization') is not None:
        quantization = quantization_of(cfg)
        shared = {key: quantization[key] for key in OF_MODEL
                  if quantization.get(key)}
    cfg.custom_hooks = [hook for hook in hooks if hook not in ours]
    cfg.model = float_model_config(cfg.model)
    hook = dict(ours[0].to_dict() if ours else {}, type='GDRQHook')
    hook.pop('quantization', None)
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    cfg.custom_imports = dict(imports=[*imports, *(
        ['gdrq_mm'] if 'gdrq_mm' not in imports else [])])
    return hook, shared


def _check_no_validation(cfg: Config) -> None:
    """Raises:
        ValueError: Validations would act on the training: all cells are
            trained for one schedule, and tested at its end.
    """
    for entry in typed_parts([cfg.get('custom_hooks'),
                              cfg.get('param_scheduler')]):
        kind = type_name(entry)
        if any(name in kind for name in ON_VALIDATIONS):
            raise ValueError(
                f'{cfg.filename} has {kind}, which acts on validations; '
                'compare trains every cell by one schedule and tests it at '
                'the end: leave it out, or give a schedule without it')


def check_training(cfg: Config) -> None:
    """Raises:
        ValueError: The config trains nothing.
    """
    for name in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if not cfg.get(name):
            raise ValueError(f'{cfg.filename} has no {name}; give the config '
                             'that fine-tunes the float model')


def ends_of(cfg: Config, model, shape: Tuple[int, int] = (224, 224)
            ) -> List[dict]:
    """Rules that keep first and last layers at 8 bits."""
    batch = example_batch(scope_of(cfg), shape, image_channels(cfg))
    plans = make_plan(model, QuantConfig.from_dict(
        dict(weight=dict(bits=ENDS_BITS))))
    try:
        found = first_and_last(model, plans, lambda: model.test_step(batch))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f'{cfg.filename}: first and last layers are not found, as the '
            f'model does not run on a random image, {shape[0]}x{shape[1]} ('
            f'{sentence(error)}); say which they are '
            'by rules of a GDRQHook in the config') from error
    if found.uncalled:
        print('A random image calls no ' + ', '.join(found.uncalled) + ': if '
              'first or last layers are among them, give their bits by rules '
              f'of a GDRQHook in {cfg.filename}')
    return [dict(match=name, weight=dict(bits=ENDS_BITS),
                 activation=dict(bits=ENDS_BITS))
            for name in dict.fromkeys([*found.first, *found.last])]
