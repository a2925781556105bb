#!/usr/bin/env python3
"""Train and publish the models of model_zoo/.

Usage: python tools/publish_zoo.py [MODEL ...] [--jobs 2]

A model is a config on real data; without names, all quantized ones. The model
and the float model that it is compared with are trained as by
tools/run_experiments.py, which shares its work dir: what is trained is not
trained again, and after an interruption the same command goes on. Both begin
with a float model that model_zoo/ has; one that is named is trained (again).
The packed file and its config go to model_zoo/, the figures to
model_zoo/models.json, those of float models to model_zoo/starts.json;
tools/model_zoo.py makes tables and metafiles of these.
"""
import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict

from experiments.cells import with_needs
from experiments.engine import Settings, run_cells
from experiments.starts import published_starts, write_start
from experiments.studies import CELLS, FAMILIES
from experiments.studies.real import FIRST_SEED, TASKS, bits
from jobs.checkout import ROOT, cores, shown
from jobs.engine import check_failed
from jobs.process import prepare_environment
from jobs.records import JobError, Lock, file_hash, read_json, write_json
from run_experiments import make_data

from gdrq_mm.writing import write_whole

METHOD = 'mse'  # the defaults, in experiments/studies/real.py
PAIRS = ((4, 4), (2, 4))
SEED = FIRST_SEED


@dataclass(frozen=True)
class Model:
    """One published model.

    Args:
        config (str): Relative to the checkout.
        cell (str): What trains it.
        metric (str): Name of its metric.
    """
    config: str
    cell: str
    metric: str

    @property
    def name(self) -> str:
        return Path(self.config).stem


MODELS: Dict[str, Model] = {each.name: each for each in (
    Model(task.config.format(f'gdrq-{bits(pair)}_'),
          f'{family}/{METHOD}-{bits(pair)}', task.metric)
    for family, task in TASKS.items() for pair in PAIRS)}
STARTS: Dict[str, Model] = {each.name: each for each in (
    Model(task.config.format(''), f'{family}/start', task.metric)
    for family, task in TASKS.items())}


def publish_model(model: Model, settings: Settings, out: Path) -> dict:
    """Publish a trained model and write it down in ``models.json``.

    Returns:
        dict: Its files and figures.

    Raises:
        JobError: Files of that name, of another training or not written down,
            are there, or it cannot be published.
    """
    from gdrq_mm.openmmlab.publish import publish
    cell = CELLS[model.cell]
    training, reference = (
        read_json(settings.record_path(name, SEED))
        for name in (model.cell, cell.reference))
    record = training['results']
    source = file_hash(record['checkpoint'])
    entries = read_list(out / 'models.json')
    entry = entries.get(model.name, dict(file='', config='', source=''))
    there = {path.name for path in out.glob(f'{model.name}_*')}
    if there and (there != {entry['file'], entry['config']}
                  or entry['source'] != source):
        raise JobError(
            f'{shown(out)} has {", ".join(sorted(there))}, which are not of '
            f'{shown(Path(record["checkpoint"]))}; remove them to publish it')
    if there:
        return entry
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        try:
            made = publish(str(ROOT / model.config), record['checkpoint'],
                           folder)
        except (OSError, RuntimeError, ValueError) as error:
            raise JobError(str(error)) from error
        checkpoint, config = (path.replace(out / path.name) for path in made)
    entries[model.name] = dict(
        name=model.name, training_config=model.config, file=checkpoint.name,
        config=config.name, bytes=checkpoint.stat().st_size,
        data=FAMILIES[cell.family].data, metric_name=model.metric,
        metric=record['metric'], float_metric=reference['results']['metric'],
        policy=record['policy'], weight_levels=record['weight_levels'],
        seed=SEED, seconds=record['seconds'], commit=record['commit'],
        date=record['date'], versions=training['versions'], source=source)
    write_json(out / 'models.json', [
        entries[name] for name in MODELS if name in entries])
    return entries[model.name]


def publish_start(start: Model, settings: Settings, out: Path) -> dict:
    """Publish a float model that others begin with, in ``starts.json``.

    Returns:
        dict: Its file and figures.

    Raises:
        JobError: A file of that name, of another training, is there.
    """
    record = read_json(start_record(start, settings))
    result, inputs = record['results'], record['inputs']
    checkpoint, target = Path(result['checkpoint']), out / f'{start.name}.pth'
    source = file_hash(checkpoint)
    entries = read_json(out / 'starts.json') or {}
    if target.exists():
        if entries.get(start.cell, {}).get('source') == source:
            return entries[start.cell]
        raise JobError(f'{shown(target)} is not of {shown(checkpoint)}; '
                       'remove it to publish that')
    with write_whole(target) as part:
        write_start(checkpoint, part)
    entries[start.cell] = dict(
        name=start.name, training_config=start.config, file=target.name,
        bytes=target.stat().st_size, hash=file_hash(target),
        metric_name=start.metric, seed=CELLS[start.cell].seed_for(SEED),
        config_hash=inputs['config'],
        data=FAMILIES[CELLS[start.cell].family].data, stamp=inputs['data'],
        versions=record['versions'], source=source,
        **{key: value for key, value in result.items()
           if key != 'checkpoint'})
    write_json(out / 'starts.json', {
        each.cell: entries[each.cell] for each in STARTS.values()
        if each.cell in entries})
    return entries[start.cell]


def start_record(start: Model, settings: Settings) -> Path:
    """Where the training of a float model is written down."""
    return settings.record_path(start.cell, CELLS[start.cell].seed_for(SEED))


def trained_here(start: Model, settings: Settings) -> bool:
    """Whether there is a training of a float model that is not the published
    one, which others took over."""
    record = read_json(start_record(start, settings))
    published = published_starts().get(start.cell, {}).get('checkpoint')
    return record is not None and record.get('results', {}).get(
        'checkpoint') != published


def read_list(path: Path) -> Dict[str, dict]:
    """What is published, by name."""
    return {entry['name']: entry for entry in (
        json.loads(path.read_text()) if path.exists() else [])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='*', metavar='MODEL',
                        help=f'of {", ".join(MODELS)}; float ones: '
                        f'{", ".join(STARTS)}')
    parser.add_argument('--jobs', type=int, default=cores(),
                        help='one-thread processes (default: cores)')
    for name, path, text in (
            ('work-dir', 'work_dirs/experiments', 'where trainings are'),
            ('data', 'data', 'where the converted datasets are'),
            ('out', 'model_zoo', 'where to publish')):
        parser.add_argument(f'--{name}', type=Path, default=ROOT / path,
                            help=f'{text} (default: {path})')
    args = parser.parse_args()
    unknown = set(args.models) - {*MODELS, *STARTS}
    if unknown:
        parser.error(f'no model {", ".join(sorted(unknown))}; there are '
                     f'{", ".join([*MODELS, *STARTS])}')
    if args.jobs < 1:
        parser.error(f'--jobs must be 1 or more, got {args.jobs}')
    names = args.models or MODELS
    models = [MODELS[name] for name in names if name in MODELS]
    starts = [STARTS[name] for name in names if name in STARTS]
    wanted = [each.cell for each in (*starts, *models)]
    settings = Settings(CELLS, FAMILIES, args.work_dir.resolve(),
                        args.data.resolve(), jobs=args.jobs, starts={
                            cell: entry for cell, entry
                            in published_starts().items()
                            if cell not in wanted})
    for start in starts:
        target = args.out / f'{start.name}.pth'
        if target.exists() and not trained_here(start, settings):
            raise JobError(f'{shown(target)} is there; to train it again, '
                           'remove it or give another --out')
    lock = Lock(settings.work_dir)
    for start in starts:
        if not trained_here(start, settings):
            start_record(start, settings).unlink(missing_ok=True)
    names = with_needs(CELLS, wanted)
    make_data([name for name in names if name not in settings.starts],
              settings.data)
    prepare_environment()
    failed = run_cells(settings, [
        (name, CELLS[name].seed_for(SEED)) for name in names])
    del lock
    check_failed(failed)
    for entry in [*(publish_start(each, settings, args.out)
                    for each in starts),
                  *(publish_model(each, settings, args.out)
                    for each in models)]:
        print(f'{shown(args.out / entry["file"])}: {entry["bytes"]} bytes, '
              f'{entry["metric_name"]} {entry["metric"]:.2f}')


if __name__ == '__main__':
    try:
        main()
    except JobError as error:
        sys.exit(f'publish_zoo: {error}')
    except KeyboardInterrupt:
        sys.exit('\npublish_zoo: interrupted; the same command goes on')
