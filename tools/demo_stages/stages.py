"""The stages of the demo: what each needs, on what inputs, which command."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional

from jobs.checkout import ROOT, gdrq_mm_version, shown
from jobs.engine import Task
from jobs.records import JobError, file_hash, read_json

from .run_configs import Configs, Settings
from .tasks import LABELS, QUANTIZED, START, TASKS


@dataclass(frozen=True)
class Stage:
    """One process of the demo: ``kind`` is train, test, publish or look."""
    task: str
    seed: int
    run: str
    kind: str
    settings: Settings = field(repr=False)

    @property
    def name(self) -> str:
        return f'{self.task} seed {self.seed} {self.run} {self.kind}'

    @property
    def folder(self) -> Path:
        """Where it writes; its record and log lie beside it."""
        return (self.settings.work_dir / self.task / f'seed{self.seed}'
                / self.run / self.kind)

    def other(self, kind: str, run: Optional[str] = None) -> 'Stage':
        return Stage(self.task, self.seed, run or self.run, kind,
                     self.settings)


def all_stages(settings: Settings) -> List[Stage]:
    """Every stage, in order; the first seed is complete first."""
    stages = []
    for seed in settings.seeds:
        first = seed == settings.seeds[0]
        for task in settings.tasks:
            for run in settings.runs:
                kinds = ['train', 'test']
                if first and run in QUANTIZED:
                    kinds.append('publish')
                stages += [Stage(task, seed, run, kind, settings)
                           for kind in kinds]
            if first:
                stages.append(Stage(task, seed, 'all', 'look', settings))
    return stages


def needs(stage: Stage, stages: List[Stage]) -> List[Stage]:
    """Those that must be done before another begins: a training needs the
    float model, all else of a run its training, and pictures need all."""
    if stage.kind == 'look':
        return [other for other in stages if other is not stage and
                (other.task, other.seed) == (stage.task, stage.seed)]
    if stage.kind != 'train':
        return [stage.other('train')]
    return [] if stage.run == START else [stage.other('train', START)]


def prepare(stage: Stage, configs: Configs,
            records: Dict[str, dict]) -> Task:
    """How to run a stage whose predecessors are done.

    Args:
        stage (Stage): The stage.
        configs (Configs): All configs.
        records (dict[str, dict]): Name of a stage -> its finished record.
    """
    root = stage.settings.work_dir

    def result(kind, run=None):
        return records[stage.other(kind, run).name]['results']

    def checkpoint(run=None):
        return root / result('train', run)['checkpoint']

    inputs = dict(data=configs.stamp(stage.task), gdrq_mm=gdrq_mm_version())
    if stage.kind == 'look':
        return _look_job(stage, configs, inputs, result, checkpoint)
    config = configs.path(stage.task, stage.run)
    options = ['--cfg-options', *configs.options(stage.task)]
    inputs['config'] = configs.hash(stage.task, stage.run)
    where = ['--work-dir', shown(stage.folder)]
    if stage.kind == 'train':
        length = configs.length(stage.task, stage.run)
        interval = max(length // 8, 1)
        options += [f'randomness.seed={stage.seed}',
                    # The test has a stage of its own.
                    f'train_cfg.val_begin={length + 1}',
                    f'default_hooks.checkpoint.interval={interval}',
                    # The one before goes before the new one is written.
                    'default_hooks.checkpoint.max_keep_ckpts=2']
        inputs['seed'] = stage.seed
        start = 'load_from=None'
        if stage.run != START:
            inputs['load_from'] = file_hash(checkpoint(START))
            start = f'load_from={shown(checkpoint(START))}'
        command = ['tools/train.py', config, *where]
        # --resume with load_from would begin from that one again.
        return _script(
            inputs, [*command, *options, start], lambda: _trained(stage),
            [*command, '--resume', *options, 'load_from=None']
            if last_checkpoint(stage) else None,
            epochs=configs.max_epochs(stage.task, stage.run))
    inputs['checkpoint'] = file_hash(checkpoint())
    if stage.kind == 'test':
        command = ['tools/test.py', config, shown(checkpoint()), *where,
                   *options]
        return _script(inputs, command, lambda: _tested(stage), mode='test')
    command = ['tools/publish_model.py', config, shown(checkpoint()),
               shown(stage.folder)]
    return _script(inputs, command, lambda: _published(stage))


def _script(inputs, command, results, resume=None, **kwargs) -> Task:
    """The command line of a tool; ``results()`` reads what it wrote."""

    def finish(_):
        found = results()
        return dict(outputs=found.pop('outputs'), results=found)

    return Task(inputs, 'jobs.process:run_script', dict(command=command),
                finish, resume and dict(command=resume), **kwargs)


def _look_job(stage, configs, inputs, result, checkpoint) -> Task:
    """Pictures, weight distributions and shares, from all three runs."""
    task, root = TASKS[stage.task], stage.settings.work_dir
    runs = {}
    for run in stage.settings.runs[1:]:
        runs[run] = dict(label=LABELS[run], metric=result('test', run)[
            'metric'], trained=str(checkpoint(run)))
        inputs[run] = file_hash(checkpoint(run))
        runs[run].update(model=str(ROOT / configs.path(stage.task, run)),
                         weights=str(checkpoint(run)))
        if run in QUANTIZED:
            published = result('publish', run)
            runs[run].update(model=str(root / published['config']),
                             weights=str(root / published['checkpoint']))
            inputs[f'{run} published'] = file_hash(runs[run]['weights'])
    spec = dict(task=stage.task, title=task.title, metric=task.metric_name,
                data=str(stage.settings.data / task.folder), runs=runs,
                quick=stage.settings.quick,
                picture=str(root / f'{stage.task}.png'),
                weights=str(root / f'weights_{stage.task}.png'))
    return Task(inputs, 'demo_stages.look:look', dict(spec=spec),
                lambda results: dict(results=results, outputs=[
                    f'{stage.task}.png', f'weights_{stage.task}.png']))


def last_checkpoint(stage: Stage) -> Optional[Path]:
    """Where an interrupted training goes on from."""
    try:
        name = (stage.folder / 'last_checkpoint').read_text().strip()
    except FileNotFoundError:
        return None
    path = (ROOT / name).resolve()
    return path if path.is_file() else None


def _trained(stage: Stage) -> dict:
    path = last_checkpoint(stage)
    if path is None:
        raise JobError(f'the training left no checkpoint in {stage.folder}')
    name = relative(path, stage.settings.work_dir)
    return dict(checkpoint=name, outputs=[name])


def _tested(stage: Stage) -> dict:
    """The test tools write their metrics to <time>/<time>.json."""
    task = TASKS[stage.task]
    for path in stage.folder.glob('*/*.json'):
        metrics = read_json(path) or {}
        if task.metric in metrics:
            return dict(metric=metrics[task.metric] * task.points,
                        metrics=metrics, outputs=[])
    raise JobError(f'the test wrote no {task.metric!r} below {stage.folder}')


def _published(stage: Stage) -> dict:
    checkpoint, = stage.folder.glob('*.pth')
    config, = stage.folder.glob('*.py')
    names = [relative(path, stage.settings.work_dir)
             for path in (checkpoint, config)]
    return dict(checkpoint=names[0], config=names[1],
                bytes=checkpoint.stat().st_size, outputs=names)


def relative(path: Path, root: Path) -> str:
    return Path(path).resolve().relative_to(root).as_posix()
