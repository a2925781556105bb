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

    What the files of studies there have of these cells, of other seeds, of
    the same configs and data, is taken over, the newest of what several have:
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
    written = _written(path)
    names = study.cells(settings.cells)
    data = {family: finished.configs.stamp(settings.families[family])
            or next((each['data'][family] for each in written
                     if each['data'].get(family)), None)
            for family in dict.fromkeys(settings.cells[cell].family
                                        for cell in names)}
    cells, versions, new = {}, [], 0
    for cell_name in names:
        cell, seeds = settings.cells[cell_name], {}
        for each in written:
            if each['data'].get(cell.family) != data[cell.family]:
                continue
            found = {seed: result for seed, result in each['cells'].get(
                cell_name, dict(seeds={}))['seeds'].items()
                if _date(result) > _date(seeds.get(seed))
                and int(seed) == cell.seed_for(int(seed))
                and result['config_hash'] == finished.configs.hash(
                    cell, int(seed))}
            seeds.update(found)
            versions += [version for version in each['versions']
                         if found and version not in versions]
        for seed, record in finished.seeds(cell_name).items():
            if _date(record['results']) < _date(seeds.get(str(seed))):
                continue
            new += 1
            seeds[str(seed)] = dict(
                {key: value for key, value in record['results'].items()
                 if key != 'checkpoint'},
                config_hash=record['inputs']['config'],
                start_hash=record['inputs']['load_from'])
            # Behind one, augmentation is another than without.
            if record.get('interruptions'):
                seeds[str(seed)]['interruptions'] = record['interruptions']
            if 'checkpoint' in record['results']:
                seeds[str(seed)]['hash'] = file_hash(
                    record['results']['checkpoint'])
            if record['versions'] not in versions:
                versions.append(record['versions'])
        cells[cell_name] = dict(
            config=cell.config, options=cell.options, start=cell.start,
            reference=cell.reference, kind=cell.kind, latent=cell.latent,
            shared=cell.shared, seeds=dict(sorted(seeds.items())))
    if not new:
        return None
    _leave_out_other_starts(name, cells)
    write_json(path, dict(
        study=name, title=study.title, seeds=study.seeds,
        command=f'python tools/run_experiments.py {name}', data=data,
        versions=versions, cells=cells))
    return path


def _date(result: Optional[dict]) -> str:
    # The oldest results have none.
    return '' if result is None else result.get('date', '0')


def _written(path: Path) -> list:
    """What files of studies have, that of this one first."""
    found = [read_json(each) for each in (path, *sorted(
        other for other in path.parent.glob('*.json') if other != path))]
    return [each for each in found if isinstance(each, dict)
            and {'study', 'data', 'versions', 'cells'} <= each.keys()]


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
            theirs = reference['seeds'].get(
                '0' if reference.get('shared') else seed, {}).get(key)
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
