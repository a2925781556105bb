#!/usr/bin/env python3
"""Train and publish the models of model_zoo/.

Usage: python tools/publish_zoo.py [MODEL ...] [--jobs 2]

A model is a config on real data; without names, all of them. Its float start,
the float model that it is compared with and the model itself are trained as by
tools/run_experiments.py, which shares its work dir: what is trained is not
trained again, and after an interruption the same command goes on. The packed
file and its config go to model_zoo/, the figures to model_zoo/models.json;
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
from experiments.studies import CELLS, FAMILIES
from experiments.studies.real import TASKS, bits
from jobs.checkout import ROOT, cores, shown
from jobs.engine import check_failed
from jobs.process import prepare_environment
from jobs.records import JobError, Lock, file_hash, read_json, write_json
from run_experiments import make_data

METHOD = 'bestk'  # of experiments/studies/real.py
PAIRS = ((4, 4), (2, 4))
SEED = 0


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
    record, reference = (
        read_json(settings.record_path(name, SEED))['results']
        for name in (model.cell, cell.reference))
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
        metric=record['metric'], float_metric=reference['metric'],
        policy=record['policy'], weight_levels=record['weight_levels'],
        seed=SEED, seconds=record['seconds'], commit=record['commit'],
        date=record['date'], source=source)
    write_json(out / 'models.json', [
        entries[name] for name in MODELS if name in entries])
    return entries[model.name]


def read_list(path: Path) -> Dict[str, dict]:
    """What is published, by name."""
    return {entry['name']: entry for entry in (
        json.loads(path.read_text()) if path.exists() else [])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='*', metavar='MODEL',
                        help=f'of {", ".join(MODELS)}')
    parser.add_argument('--jobs', type=int, default=cores(),
                        help='one-thread processes (default: cores)')
    for name, path, text in (
            ('work-dir', 'work_dirs/experiments', 'where trainings are'),
            ('data', 'data', 'where the converted datasets are'),
            ('out', 'model_zoo', 'where to publish')):
        parser.add_argument(f'--{name}', type=Path, default=ROOT / path,
                            help=f'{text} (default: {path})')
    args = parser.parse_args()
    unknown = set(args.models) - set(MODELS)
    if unknown:
        parser.error(f'no model {", ".join(sorted(unknown))}; there are '
                     f'{", ".join(MODELS)}')
    if args.jobs < 1:
        parser.error(f'--jobs must be 1 or more, got {args.jobs}')
    models = [MODELS[name] for name in args.models or MODELS]
    settings = Settings(CELLS, FAMILIES, args.work_dir.resolve(),
                        args.data.resolve(), jobs=args.jobs)
    lock = Lock(settings.work_dir)
    names = with_needs(CELLS, [model.cell for model in models])
    make_data(names, settings.data)
    prepare_environment()
    failed = run_cells(settings, [(name, SEED) for name in names])
    del lock
    check_failed(failed)
    for model in models:
        entry = publish_model(model, settings, args.out)
        print(f'{shown(args.out / entry["file"])}: {entry["bytes"]} bytes, '
              f'{entry["metric_name"]} {entry["metric"]:.2f}')


if __name__ == '__main__':
    try:
        main()
    except JobError as error:
        sys.exit(f'publish_zoo: {error}')
    except KeyboardInterrupt:
        sys.exit('\npublish_zoo: interrupted; the same command goes on')
