"""Collect what the cells of a study gave into one JSON file."""
from pathlib import Path

from demo_stages.records import read_json, write_json

from .cells import Configs, Study


def finished(settings, configs: Configs, name: str) -> dict:
    """Seed -> record of a cell, of those that its config of today gave."""
    found = {}
    folder = settings.work_dir / name
    for path in sorted(folder.glob('seed*.json')):
        record = read_json(path)
        seed = int(path.stem.removeprefix('seed'))
        if record and record['inputs']['config'] == configs.hash(
                settings.cells[name], seed):
            found[seed] = record
    return dict(sorted(found.items()))


def collect(settings, name: str, study: Study, out: Path) -> Path:
    """Write ``<name>.json`` of a study.

    Args:
        settings (Settings): Of the engine.
        name (str): Of the study.
        study (Study): Its table.
        out (Path): Folder to write to.
    """
    configs = Configs(settings.data)
    cells, versions = {}, []
    for cell_name in study.cells(settings.cells):
        cell = settings.cells[cell_name]
        records = finished(settings, configs, cell_name)
        versions += [record['versions'] for record in records.values()]
        cells[cell_name] = dict(
            config=cell.config, options=cell.options, start=cell.start,
            reference=cell.reference, kind=cell.kind, latent=cell.latent,
            seeds={str(seed): dict(
                {key: value for key, value in record['results'].items()
                 if key != 'checkpoint'},
                config_hash=record['inputs']['config'],
                start_hash=record['inputs']['load_from'])
                for seed, record in records.items()})
    path = out / f'{name}.json'
    write_json(path, dict(
        study=name, title=study.title, seeds=study.seeds,
        command=f'python tools/run_experiments.py {name}',
        data={family: read_json(
            settings.data / settings.families[family].data
            / 'demo_data.json') for family in dict.fromkeys(
                settings.cells[cell].family for cell in cells)},
        versions=[one for index, one in enumerate(versions)
                  if one not in versions[:index]], cells=cells))
    return path


def list_studies(settings, studies) -> str:
    """How much of every study is there."""
    configs, lines = Configs(settings.data), []
    for name, study in studies.items():
        cells = study.cells(settings.cells)
        done = sum(len(finished(settings, configs, cell)) for cell in cells)
        lines.append(f'{name:12} {done:3} of {len(cells) * study.seeds:3} '
                     f'trainings and tests: {study.title}')
    return '\n'.join(lines)
