"""Collect what the cells of a study gave into one JSON file."""
from pathlib import Path
from typing import Optional

from jobs.checkout import ROOT
from jobs.records import file_hash, read_done, read_json, write_json

from .cells import Configs, Study


class Finished:
    """The records whose config, data, version and start are those of today.

    Args:
        settings (Settings): Settings of the engine.
    """

    def __init__(self, settings) -> None:
        self.settings, self.configs = settings, Configs(settings.data)
        self._known = {}

    def get(self, name: str, seed: int) -> Optional[dict]:
        """Record of a cell, None where it has to be run (again)."""
        if (name, seed) not in self._known:
            self._known[name, seed] = self._get(
                self.settings.cells[name], seed)
        return self._known[name, seed]

    def _get(self, cell, seed) -> Optional[dict]:
        start = cell.start and self.get(
            cell.start, self.settings.cells[cell.start].seed_for(seed))
        if cell.start and start is None:
            return None
        inputs = self.configs.inputs(
            cell, seed, self.settings.families[cell.family],
            start and start['results']['checkpoint'])
        return read_done(self.settings.record_path(cell.name, seed), inputs,
                         ROOT)

    def seeds(self, name: str) -> dict:
        """Seed -> record of a cell."""
        numbers = sorted(int(path.stem.removeprefix('seed')) for path in
                         (self.settings.work_dir / name).glob('seed*.json'))
        cell = self.settings.cells[name]
        found = {seed: self.get(name, seed) for seed in numbers
                 if seed == cell.seed_for(seed)}
        return {seed: record for seed, record in found.items() if record}


def collect(settings, name: str, study: Study, out: Path) -> Optional[Path]:
    """Write ``<name>.json`` of a study.

    What that file has of other seeds, of the same configs and data, is kept:
    a machine need not have them all. A result is not, and that is printed,
    where the float model that it is compared with now began with another
    start.

    Args:
        settings (Settings): Settings of the engine.
        name (str): Name of the study.
        study (Study): Its table.
        out (Path): Folder to write to.

    Returns:
        Path: The file; None where there is nothing to write.
    """
    finished, path = Finished(settings), out / f'{name}.json'
    before = read_json(path) or dict(data={}, versions=[], cells={})
    data = {family: finished.configs.stamp(settings.families[family])
            or before['data'].get(family) for family in dict.fromkeys(
                settings.cells[cell].family for cell in study.cells(
                    settings.cells))}
    cells, versions, new = {}, list(before['versions']), 0
    for cell_name in study.cells(settings.cells):
        cell, seeds = settings.cells[cell_name], {}
        if before['data'].get(cell.family) == data[cell.family]:
            seeds = {seed: result for seed, result in before['cells'].get(
                cell_name, dict(seeds={}))['seeds'].items()
                if int(seed) == cell.seed_for(int(seed))
                and result['config_hash'] == finished.configs.hash(
                    cell, int(seed))}
        for seed, record in finished.seeds(cell_name).items():
            new += 1
            seeds[str(seed)] = dict(
                {key: value for key, value in record['results'].items()
                 if key != 'checkpoint'},
                config_hash=record['inputs']['config'],
                start_hash=record['inputs']['load_from'])
            if 'checkpoint' in record['results']:
                seeds[str(seed)]['hash'] = file_hash(
                    record['results']['checkpoint'])
            if record['versions'] not in versions:
                versions.append(record['versions'])
        cells[cell_name] = dict(
            config=cell.config, options=cell.options, start=cell.start,
            reference=cell.reference, kind=cell.kind, latent=cell.latent,
            seeds=dict(sorted(seeds.items())))
    if not new:
        return None
    _leave_out_other_starts(name, cells)
    write_json(path, dict(
        study=name, title=study.title, seeds=study.seeds,
        command=f'python tools/run_experiments.py {name}', data=data,
        versions=versions, cells=cells))
    return path


def _leave_out_other_starts(study: str, cells: dict) -> None:
    """Results whose float model, as it is now, is not of their start."""
    for cell_name, cell in cells.items():
        reference = cells.get(cell['reference'])
        if reference is None:
            continue
        if cell['reference'] == cell['start']:  # of calibrated models
            key = 'hash'
        elif reference['start'] == cell['start']:
            key = 'start_hash'
        else:
            continue
        for seed, result in list(cell['seeds'].items()):
            theirs = reference['seeds'].get(seed, {}).get(key)
            if theirs and theirs != result['start_hash']:
                print(f'{study}: {cell_name} seed {seed} is left out, as its '
                      'float model began with another start')
                del cell['seeds'][seed]


def list_studies(settings, studies) -> str:
    """How much of every study is there."""
    finished, lines = Finished(settings), []
    for name, study in studies.items():
        tasks = study.tasks(settings.cells, study.all_seeds())
        done = sum(bool(finished.get(*task)) for task in tasks)
        lines.append(f'{name:12} {done:3} of {len(tasks):3} '
                     f'trainings and tests: {study.title}')
    return '\n'.join(lines)
