"""Training experiments: the engine, the list of studies, the results page."""
import copy
import dataclasses
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

import gdrq_mm
from gdrq_mm import QuantConfig
from gdrq_mm.openmmlab.publish import quantization_of

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools'))

import results_page  # noqa: E402
import run_experiments  # noqa: E402
from experiments.cells import (  # noqa: E402
    Cell,
    Claim,
    Configs,
    Family,
    Row,
    Study,
    from_demo,
)
from experiments.engine import Settings, run_cells  # noqa: E402
from experiments.results import collect, list_studies  # noqa: E402
from experiments.starts import published_starts  # noqa: E402
from experiments.studies import (  # noqa: E402
    CELLS,
    FAMILIES,
    STUDIES,
    real,
)
from experiments.tables import Results, interval  # noqa: E402
from jobs.records import (  # noqa: E402
    JobError,
    file_hash,
    read_json,
    write_json,
)

CONFIG = 'tools/experiments/configs/resnet18_signs.py'


# -- the engine, with cells that train nothing --------------------------------


@pytest.fixture
def settings(tmp_path):
    """A chain, a cell beside it, and one that fails with what follows it."""
    cells = {cell.name: cell for cell in (
        Cell('toy/start', CONFIG), Cell('toy/next', CONFIG,
                                        start='toy/start'),
        Cell('toy/other', CONFIG), Cell('toy/bad', CONFIG),
        Cell('toy/after', CONFIG, start='toy/bad'),
        Cell('toy/dying', CONFIG), Cell('toy/lost', 'no/config.py'))}
    return Settings(cells, dict(toy=Family('Toy', 'cls', 'signs')),
                    tmp_path / 'work', tmp_path / 'data', jobs=2,
                    function='fake_cells:run')


def run(settings, *names, seeds=(0, )):
    return run_cells(settings, [(f'toy/{name}', seed) for seed in seeds
                                for name in names])


def metric(settings, name, seed=0):
    record = json.loads(settings.record_path(f'toy/{name}', seed).read_text())
    return record['results']['metric']


def test_cells_begin_with_the_model_of_their_start(settings):
    assert run(settings, 'next', 'start', 'other', seeds=(0, 1)) == {}
    for seed in (0, 1):
        text = (settings.folder('toy/next', seed) / 'last.pth').read_text()
        start = settings.folder('toy/start', seed) / 'last.pth'
        assert text == f'toy/next {seed} from {start}'
        record = json.loads(settings.record_path(
            'toy/next', seed).read_text())
        assert record['inputs']['seed'] == seed
        assert record['inputs']['load_from'] and record['versions']['torch']
    assert 'at work on toy/next' in settings.folder(
        'toy/next', 0).with_suffix('.log').read_text()


def test_all_seeds_may_begin_with_one_model(settings):
    settings.cells['toy/start'] = dataclasses.replace(
        settings.cells['toy/start'], shared=True)
    study = Study('A study', '', ['next'], [Row('metric', ['toy/next'])])
    tasks = study.tasks(settings.cells, range(2))
    assert tasks == [('toy/start', 0), ('toy/next', 0), ('toy/next', 1)]
    assert run_cells(settings, tasks) == {}
    start = settings.folder('toy/start', 0) / 'last.pth'
    for seed in (0, 1):
        assert (settings.folder('toy/next', seed) / 'last.pth').read_text() \
            == f'toy/next {seed} from {start}'
    assert '  3 of   3' in list_studies(settings, dict(
        toy=dataclasses.replace(study, seeds=2)))
    # Seed 1 is there, seed 2 is not.
    assert '  2 of   3' in list_studies(settings, dict(
        toy=dataclasses.replace(study, seeds=2, first_seed=1)))


def test_a_calibration_that_was_interrupted_is_repeated(settings):
    """Its checkpoint may be there; only trainings go on from theirs."""
    settings.cells['toy/calibrated'] = Cell('toy/calibrated', CONFIG,
                                            kind='calibrate')
    run(settings, 'calibrated', 'start')
    for name, left in (('calibrated', False), ('start', True)):
        path = settings.record_path(f'toy/{name}', 0)
        write_json(path, dict(json.loads(path.read_text()),
                              status='running'))
        file = settings.folder(f'toy/{name}', 0) / 'left'
        file.touch()
        run(settings, name)
        assert file.exists() is left


@pytest.fixture
def published(settings, tmp_path):
    """Settings with a published ``toy/start``, and its entry."""
    path = tmp_path / 'zoo' / 'start.pth'
    path.parent.mkdir()
    path.write_text('published')
    entry = dict(
        seed=0, config_hash=Configs(settings.data).hash(
            settings.cells['toy/start'], 0), stamp=dict(digest='abc'),
        file=path.name, hash=file_hash(path), metric=42., by='zoo', threads=1,
        commit='abc', date='then', seconds=3., versions=dict(torch='1'))
    write_json(path.with_name('starts.json'), {'toy/start': entry})
    starts = published_starts(path.with_name('starts.json'))
    return dataclasses.replace(settings, starts=starts), starts['toy/start']


def test_a_published_model_is_taken_over(published):
    settings, entry = published
    assert run(settings, 'start', 'next') == {}
    assert metric(settings, 'start') == 42
    assert (settings.folder('toy/next', 0) / 'last.pth').read_text() == \
        f'toy/next 0 from {entry["checkpoint"]}'
    record = read_json(settings.record_path('toy/start', 0))
    assert record['versions'] == dict(torch='1')
    assert not settings.folder('toy/start', 0).exists()


@pytest.mark.parametrize('other', ['seed', 'config', 'data', 'file', 'gone'])
def test_only_the_very_model_is_taken_over(published, other):
    settings, entry = published
    if other == 'config':
        settings.cells['toy/start'] = dataclasses.replace(
            settings.cells['toy/start'], options={'train_cfg.max_iters': 7})
    elif other == 'data':
        write_json(settings.data / 'signs' / 'conversion.json',
                   dict(digest='another'))
    elif other == 'file':
        Path(entry['checkpoint']).write_text('damaged')
    elif other == 'gone':
        Path(entry['checkpoint']).unlink()
    seed = int(other == 'seed')
    assert run(settings, 'start', seeds=(seed, )) == {}
    assert metric(settings, 'start', seed) == 1  # it was trained


def test_what_is_done_is_not_run_again_and_what_changed_is(settings):
    run(settings, 'start', 'next', 'other')
    run(settings, 'start', 'next', 'other')
    assert metric(settings, 'next') == metric(settings, 'other') == 1
    # Interrupted: no record was written. Another start: its followers, too.
    settings.record_path('toy/other', 0).unlink()
    changed = dataclasses.replace(settings.cells['toy/start'],
                                  options={'train_cfg.max_iters': 7})
    settings.cells['toy/start'] = changed
    (settings.folder('toy/start', 0) / 'last.pth').write_text('another')
    run(settings, 'start', 'next', 'other')
    assert [metric(settings, name) for name in ('start', 'other')] == [2, 2]
    assert list(settings.work_dir.rglob('.*partial')) == []


def test_a_cell_that_fails_stops_only_what_begins_with_it(settings):
    failed = run(settings, 'bad', 'after', 'dying', 'lost', 'start', 'next')
    assert failed.keys() == {'toy/bad seed 0', 'toy/after seed 0',
                             'toy/dying seed 0', 'toy/lost seed 0'}
    assert 'config.py' in failed['toy/lost seed 0']
    assert 'it is a bad cell' in failed['toy/bad seed 0']
    assert 'seed0.log' in failed['toy/bad seed 0']
    assert failed['toy/after seed 0'] == 'toy/bad seed 0 failed'
    assert run(settings, 'after') == {
        'toy/after seed 0': 'toy/bad seed 0 was not asked for'}
    assert 'exit code 3' in failed['toy/dying seed 0']
    assert metric(settings, 'next') == 1
    for name in ('bad', 'after', 'dying'):
        record = settings.record_path(f'toy/{name}', 0)
        assert 'results' not in (read_json(record) or {})
    assert 'Traceback' in settings.folder('toy/bad', 0).with_suffix(
        '.log').read_text()


def test_results_are_collected_and_those_of_other_configs_left_out(
        settings, tmp_path):
    study = Study('A study', '', ['start', 'next'],
                  [Row('metric', ['toy/start', 'toy/next'], 'metric')])
    run(settings, 'start', 'next', seeds=(0, 2))
    path = collect(settings, 'toy', study, tmp_path / 'out')
    result = json.loads(path.read_text())
    assert result['cells']['toy/next']['seeds'].keys() == {'0', '2'}
    assert result['cells']['toy/next']['config'] == CONFIG
    assert str(tmp_path) not in path.read_text()
    assert '  4 of   6' in list_studies(settings, dict(toy=study))
    settings.cells['toy/next'] = dataclasses.replace(
        settings.cells['toy/next'], options={'train_cfg.max_iters': 7})
    assert collect(settings, 'toy', study, tmp_path / 'out') == path
    result = json.loads(path.read_text())
    assert result['cells']['toy/next']['seeds'] == {}
    assert result['cells']['toy/start']['seeds'].keys() == {'0', '2'}


def test_results_of_another_start_are_not_compared(settings, tmp_path, capsys):
    settings.cells['toy/more'] = Cell(
        'toy/more', CONFIG, start='toy/start', reference='toy/next')
    settings.cells['toy/calibrated'] = Cell(
        'toy/calibrated', CONFIG, start='toy/start', reference='toy/start')
    study = Study('A study', '', ['more'], [Row('drop', [
        'toy/more', 'toy/calibrated'])])
    out = tmp_path / 'out'
    run(settings, 'start', 'next', 'more', 'calibrated', seeds=(0, 1))
    collect(settings, 'toy', study, out)
    elsewhere = dataclasses.replace(settings, work_dir=tmp_path / 'elsewhere')
    run(elsewhere, 'start')
    (elsewhere.folder('toy/start', 0) / 'last.pth').write_text('another')
    run(elsewhere, 'start', 'next')
    path = collect(elsewhere, 'toy', study, out)
    cells = json.loads(path.read_text())['cells']
    assert cells['toy/next']['seeds'].keys() == {'0', '1'}
    assert cells['toy/more']['seeds'].keys() == {'1'}
    assert cells['toy/calibrated']['seeds'].keys() == {'1'}
    said = capsys.readouterr().out
    assert 'toy/more seed 0 is left out' in said
    assert 'toy/calibrated seed 0 is left out' in said


def test_of_a_shared_start_one_seed_is_kept(settings, tmp_path):
    study = Study('A study', '', ['next'], [Row('metric', ['toy/next'])])
    out = tmp_path / 'out'
    run(settings, 'start', 'next', seeds=(0, 1))
    collect(settings, 'toy', study, out)
    settings.cells['toy/start'] = dataclasses.replace(
        settings.cells['toy/start'], shared=True)
    run(settings, 'start', 'next')
    cells = json.loads(collect(settings, 'toy', study, out).read_text())[
        'cells']
    assert cells['toy/start']['seeds'].keys() == {'0'}


def test_published_results_are_added_to(settings, tmp_path):
    study = Study('A study', '', ['start', 'next'],
                  [Row('metric', ['toy/start', 'toy/next'], 'metric')])
    out = tmp_path / 'out'
    run(settings, 'start', 'next')
    path = collect(settings, 'toy', study, out)
    text = path.read_text()
    elsewhere = dataclasses.replace(settings, work_dir=tmp_path / 'empty')
    assert collect(elsewhere, 'toy', study, out) is None
    assert path.read_text() == text
    run(elsewhere, 'start', seeds=(1, ))
    cells = json.loads(collect(
        elsewhere, 'toy', study, out).read_text())['cells']
    assert cells['toy/start']['seeds'].keys() == {'0', '1'}
    assert cells['toy/next']['seeds'].keys() == {'0'}
    # Another study, some of whose cells were run elsewhere for this one.
    other = json.loads(collect(elsewhere, 'more', study, out).read_text())
    assert other['cells']['toy/next'] == cells['toy/next']
    # Of two results of a cell the newest counts, whatever file has it.
    for name, date, value in (('toy', '2026-01-01', 1.), ('more',
                                                          '2026-01-02', 2.)):
        file = out / f'{name}.json'
        record = json.loads(file.read_text())
        record['cells']['toy/next']['seeds']['0'].update(
            date=date, metric=value)
        write_json(file, record)
    for name in ('toy', 'more'):
        cells = json.loads(collect(
            elsewhere, name, study, out).read_text())['cells']
        assert cells['toy/next']['seeds']['0']['metric'] == 2.
    # One that lies here counts if it is not older.
    local = settings.record_path('toy/next', 0)
    for date, value in (('2025-12-31', 2.), ('2026-01-03', 3.)):
        record = json.loads(local.read_text())
        record['results'].update(date=date, metric=3.)
        write_json(local, record)
        cells = json.loads(collect(
            settings, 'toy', study, out).read_text())['cells']
        assert cells['toy/next']['seeds']['0']['metric'] == value
    # Of other data: they are no results of this study any more.
    write_json(settings.data / 'signs' / 'demo_data.json', dict(version=9))
    run(elsewhere, 'start', seeds=(2, ))
    cells = json.loads(collect(
        elsewhere, 'toy', study, out).read_text())['cells']
    assert cells['toy/start']['seeds'].keys() == {'2'}


@pytest.mark.parametrize('what', ['start', 'gdrq_mm', 'data', 'checkpoint'])
def test_results_of_another_start_version_or_data_are_not_collected(
        what, settings):
    run(settings, 'start', 'next')
    study = Study('', '', ['next'], [Row('', ['toy/next'], 'metric')])
    assert '2 of   6' in list_studies(settings, dict(toy=study))
    path = settings.record_path('toy/next', 0)
    record = json.loads(path.read_text())
    if what == 'start':
        start = settings.folder('toy/start', 0) / 'last.pth'
        start.write_text('another')
    elif what == 'checkpoint':
        (settings.folder('toy/next', 0) / 'last.pth').unlink()
    else:
        write_json(path, dict(record, inputs=dict(
            record['inputs'], **{what: 'another'})))
    assert '1 of   6' in list_studies(settings, dict(toy=study))


def test_models_of_the_demo_are_taken_over_if_they_are_the_same(tmp_path):
    cell = Cell('det/w4a4', CONFIG, demo='det/w4a4')
    folder = tmp_path / 'det' / 'seed1' / 'w4a4'
    inputs = dict(gdrq_mm=gdrq_mm.__version__, config='abc',
                  data=dict(version=2))
    checkpoint = folder / 'train' / 'epoch_2.pth'
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    write_json(folder / 'train.json', dict(
        status='done', inputs=inputs, seconds=1, results=dict(
            checkpoint='det/seed1/w4a4/train/epoch_2.pth')))
    test = dict(status='done', seconds=1, results=dict(metric=83.5),
                inputs=dict(inputs, checkpoint=file_hash(checkpoint)))
    write_json(folder / 'test.json', test)
    write_json(tmp_path / 'summary.json', dict(versions=dict(torch='2.1')))
    folders, data = [tmp_path / 'nothing', tmp_path], dict(version=2)

    def take(seed, data=data, config_hash='abc'):
        return from_demo(cell, seed, folders, data,
                         lambda task, run: config_hash)

    found, versions = take(1)
    assert (found['metric'], found['checkpoint']) == (83.5, str(checkpoint))
    assert versions == dict(torch='2.1')  # not those of today
    assert take(2) is take(1, config_hash='other') is None
    assert take(1, dict(version=1)) is None
    checkpoint.write_text('of another training, not tested yet')
    assert take(1) is None


# -- the list of studies ------------------------------------------------------


@pytest.fixture(scope='module')
def configs():
    return Configs(Path('data'))


@pytest.mark.parametrize('name', STUDIES)
def test_every_cell_of_a_study_is_there_behind_what_it_needs(name):
    study = STUDIES[name]
    cells = study.cells(CELLS)
    for cell in map(CELLS.get, cells):
        assert (ROOT / cell.config).exists() and cell.family in FAMILIES
        for needed in filter(None, (cell.start, cell.reference)):
            assert cells.index(needed) < cells.index(cell.name)
    for row in study.rows:
        assert len(row.cells) <= len(study.columns)
        assert all(CELLS[cell].reference for cell in row.cells
                   if cell and row.show == 'drop')
    assert {cell for claim in study.claims for cell in claim.cells} <= \
        {*cells}


@pytest.mark.parametrize('family', real.TASKS)
def test_the_configs_of_real_data_are_the_cells_of_the_study(family, configs):
    for pair in real.PAIRS:
        path = real.TASKS[family].config.format(f'gdrq-{real.bits(pair)}_')
        cfg = Config.fromfile(ROOT / path)
        cell = configs.get(CELLS[f'{family}/mse-{real.bits(pair)}'], 0)
        ours, theirs = (QuantConfig.from_dict(quantization_of(each))
                        for each in (cfg, cell))
        assert ours == theirs
        assert cfg.train_cfg == cell.train_cfg


@pytest.mark.parametrize('family', FAMILIES)
def test_every_config_is_valid(family, configs):
    for cell in CELLS.values():
        if cell.family != family:
            continue
        cfg = configs.get(cell, 0)
        if cfg.get('custom_hooks'):
            QuantConfig.from_dict(quantization_of(cfg))
        assert cell.name.count('/') == 1
        assert cfg.randomness.seed == 0 and cfg.val_dataloader is None


def length(cell, configs):
    """Iterations or epochs from scratch up to this model."""
    if cell is None:
        return 0
    cfg = configs.get(CELLS[cell], 0).train_cfg
    own = cfg.get('max_iters') or cfg.max_epochs
    return length(CELLS[cell].start, configs) + (
        own if CELLS[cell].kind == 'train' else 0)


def test_models_were_trained_as_long_as_what_they_are_compared_with(configs):
    for cell in CELLS.values():
        if cell.reference:
            assert length(cell.name, configs) == \
                length(cell.reference, configs), cell.name


def test_public_data_that_are_not_converted_are_named(tmp_path):
    with pytest.raises(JobError, match='bccd is missing: convert'):
        run_experiments.make_data(['bccd/start'], tmp_path)
    write_json(tmp_path / 'bccd' / 'conversion.json', dict(dataset='BCCD'))
    run_experiments.make_data(['bccd/start'], tmp_path)
    assert Configs(tmp_path).stamp(FAMILIES['bccd']) == dict(dataset='BCCD')


def test_the_command_lists_what_there_is(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, 'argv', [
        'run_experiments.py', '--list', '--work-dir', str(tmp_path)])
    run_experiments.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(STUDIES)
    monkeypatch.setattr(sys, 'argv', ['run_experiments.py', 'table9'])
    with pytest.raises(SystemExit):
        run_experiments.main()
    assert 'no study table9; there are real_tiny' in capsys.readouterr().err
    monkeypatch.setattr(sys, 'argv', ['run_experiments.py', '--list', 'k'])
    run_experiments.main()
    assert [line.split()[0] for line in
            capsys.readouterr().out.splitlines()] == ['k']
    monkeypatch.setattr(sys, 'argv', ['run_experiments.py', 'k', '--jobs',
                                      '0'])
    with pytest.raises(SystemExit):
        run_experiments.main()
    assert '--jobs must be 1 or more, got 0' in capsys.readouterr().err


# -- real trainings -----------------------------------------------------------


def test_a_cell_is_reshaped_rounded_and_calibrated(demo_data, tmp_path):
    """Two iterations each, by mmengine's runner."""
    from experiments.train_cell import run_cell
    configs = Configs(demo_data.parent)

    def go(name, out, start=None, **options):
        cfg = configs.at_data(configs.get(CELLS[name], 3))
        cfg.merge_from_dict(options)
        cfg.train_cfg.max_iters = 2
        cfg.train_dataloader.batch_size = 4
        for split in ('train', 'test'):
            cfg[f'{split}_dataloader'].dataset.indices = 10
        (tmp_path / out).mkdir()
        cell = CELLS[name]
        return run_cell(name=name, seed=3, config=cfg.to_dict(), task='cls',
                        folder=str(tmp_path / out), start=start,
                        kind=cell.kind, latent=cell.latent)

    reshaped = go('resnet18/reshape-4', 'reshape')
    assert reshaped['gdrq_phase'] == 0 and 0 <= reshaped['metric'] <= 100
    start = reshaped['checkpoint']
    before = go('resnet18/gdrq-w2-4-before', 'before', start)
    assert before['gdrq_phase'] == 1 and 'checkpoint' not in before
    assert before['gdrq_ql'] > .3  # three levels
    after = go('resnet18/gdrq-w1-4', 'after', start)
    assert '[1,float]: 20 layers' in after['policy']
    four = go('resnet18/base-w4a4', 'four')
    two = go('resnet18/from-w4a4-w2a4', 'two', four['checkpoint'])
    assert '[2,4]: ' in two['policy']
    float_model = go('resnet18/float', 'float')
    calibrated = go('resnet18/calibrated-search-w4a4', 'calibrated',
                    float_model['checkpoint'])
    assert calibrated['gdrq_act_clip'] > 0
    assert calibrated['policy'].startswith('[weight,activation] bits: [4,4]')


@HOOKS.register_module()
class DyingHook(Hook):
    """Ends the first training before its last step; knows all steps."""
    steps = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 3 and 3 not in self.steps:
            self.steps.append(3)
            raise KeyboardInterrupt
        self.steps.append(runner.iter)


def test_a_training_that_was_interrupted_goes_on(demo_data, tmp_path):
    from experiments.train_cell import run_cell
    configs = Configs(demo_data.parent)
    cfg = configs.at_data(configs.get(CELLS['resnet18/base-w2a4'], 0))
    cfg.train_cfg.max_iters = 4
    cfg.train_dataloader.batch_size = 4
    cfg.custom_hooks.append(dict(type='DyingHook'))
    for split in ('train', 'test'):
        cfg[f'{split}_dataloader'].dataset.indices = 10

    def go():
        return run_cell(name='resnet18/base-w2a4', seed=0, task='cls',
                        config=copy.deepcopy(cfg.to_dict()),
                        folder=str(tmp_path))

    DyingHook.steps.clear()
    with pytest.raises(KeyboardInterrupt):
        go()
    results = go()
    assert DyingHook.steps == [0, 1, 2, 3, 3]
    assert results['weight_levels'] == {'2': 3, '8': 255}
    assert '[8,8]: backbone.conv1, head.fc' in results['policy']
    assert results['commit'] and results['date']


def test_the_narrow_vgg_has_an_eighth_of_the_channels(build_model):
    cfg = Config.fromfile(ROOT / 'tools/experiments/configs'
                          / 'vgg16bn_signs.py')
    model = build_model(cfg)
    widths = [layer.out_channels for layer in model.backbone.features
              if hasattr(layer, 'conv')]
    assert widths == [8] * 2 + [16] * 2 + [32] * 3 + [64] * 6


def test_masks_of_boxes_are_ellipses():
    from experiments.ellipse_masks import EllipseMasks  # needs mmdet
    from mmdet.structures.bbox import HorizontalBoxes
    boxes = HorizontalBoxes(torch.tensor([[10., 20, 50, 100], [0, 0, 7, 7]]))
    found = EllipseMasks()(dict(gt_bboxes=boxes, img_shape=(120, 90)))
    large, small = found['gt_masks'].masks
    assert large.shape == (120, 90)
    assert large.sum() == pytest.approx(np.pi / 4 * 40 * 80, rel=.05)
    rows, columns = np.nonzero(large)
    assert (rows.min(), rows.max()) == (20, 100)
    assert (columns.min(), columns.max()) == (10, 50)
    assert small.sum() == pytest.approx(np.pi / 4 * 49, rel=.4)


# -- tables and verdicts ------------------------------------------------------


def results(claims=(), seeds=3, **metrics):
    """Results of cells with these metrics, one a seed."""
    study = Study('', '', ['a', 'b'], [Row('drop', ['a', 'b']),
                                       Row('metric', [None, 'a'], 'metric')],
                  claims, seeds)
    return Results(study, dict(cells={
        name: dict(reference='ref', seeds={
            str(seed): dict(metric=value)
            for seed, value in enumerate(values)})
        for name, values in metrics.items()}))


def test_drops_are_those_of_the_same_seed():
    table = results(a=[70, 69, 71], b=[60.], ref=[72, 72, 72]).table()
    assert '| drop | 2.0 (1.0 to 3.0) | 12.0 [1] |' in table
    assert '| metric |  | 70.0 (69.0 to 71.0) |' in table
    assert 'not run' in results(a=[], b=[1], ref=[1]).table()


def test_drops_are_those_of_the_seeds_of_the_study():
    """Another study may have run more of a cell."""
    table = results(a=[70, 60, 60], b=[71], ref=[72, 72, 72], seeds=1).table()
    assert '| drop | 2.0 | 1.0 |' in table
    assert '| metric |  | 70.0 |' in table


def test_drops_against_a_start_that_all_seeds_share():
    """Of calibrated models: it was trained once, with seed 0."""
    study = Study('', '', ['a', 'start'], [
        Row('drop', ['a']), Row('metric', ['a', 'start'], 'metric')],
        seeds=2, first_seed=1)
    table = Results(study, dict(cells=dict(
        a=dict(reference='start', shared=False,
               seeds={'1': dict(metric=70.), '2': dict(metric=71.)}),
        start=dict(reference=None, shared=True,
                   seeds={'0': dict(metric=72.)})))).table()
    assert '| drop | 1.5 (1.0 to 2.0) |' in table
    assert '| metric | 70.5 (70.0 to 71.0) | 72.0 [1] |' in table


@pytest.mark.parametrize('a, b, verdict', [
    ([72, 73, 74], [70, 70, 70], 'confirmed'),
    ([70, 70, 70], [72, 73, 74], 'contradicted'),
    ([72, 69, 74], [70, 70, 70], 'not seen'),
    ([70.1, 70.2, 71.5], [70, 70, 70], 'not seen'),  # chance
    ([80], [70], 'one seed: no verdict'),
    ([72, 73, 74], [70], 'one seed: no verdict'),
    ([], [70], 'not run yet')])
def test_a_claim_needs_seeds_that_agree(a, b, verdict):
    claim = Claim('a is better', better=[('a', 'b')])
    assert results([claim], a=a, b=b, ref=[75, 75, 75]).judge(
        claim)[-1].startswith(verdict)


def test_the_interval_of_the_mean_holds_it_nine_times_of_ten():
    generator = random.Random(0)
    for number in (2, 3, 5):
        inside = 0
        for _ in range(4000):
            low, high = interval([generator.gauss(1, 2)
                                  for _ in range(number)])
            inside += low <= 1 <= high
        assert inside / 4000 == pytest.approx(.9, abs=.02)


def test_models_with_other_references_are_compared_by_their_drops():
    found = results(a=[70, 70.1, 69.9], b=[75, 75.1, 74.9],
                    ref=[72, 72, 72])
    found.cells['b']['reference'] = 'other'
    found.cells['other'] = dict(seeds={
        str(seed): dict(metric=80.) for seed in range(3)})
    assert found.judge(Claim('', better=[('a', 'b')])) == [
        '+3.0', '3', 'confirmed']


def test_limits_and_equality():
    found = results(a=[72, 70.1, 71], b=[72.1, 70.1, 71.2],
                    ref=[73, 71, 72], c=[70, 68.1, 69.2])
    assert found.judge(Claim('', limits=dict(a=1.)))[-1] == 'confirmed'
    assert found.judge(Claim('', limits=dict(a=.9)))[-1].startswith(
        'not seen')
    assert found.judge(Claim('', limits=dict(a=.2)))[-1] == 'contradicted'
    equal = Claim('', equal=[('a', 'b'), ('a', 'c')])
    assert found.judge(equal) == [
        '-0.1; +1.9', '3', 'contradicted (1 of 2 so, 1 the other way)']


def test_one_cell_contradicts_what_is_said_of_all():
    found = results(a=[72, 73, 74], b=[70, 70, 70], c=[75, 76, 77],
                    ref=[75, 75, 75])
    both = Claim('a is best', better=[('a', 'b'), ('a', 'c')])
    assert found.judge(both)[-1] == \
        'contradicted (1 of 2 so, 1 the other way)'
    assert found.judge(Claim('', better=[('a', 'b'), ('a', 'new')]))[
        -1] == 'confirmed; 1 of 2 run'  # a cell that the JSON lacks


def test_fig8_is_drawn_from_what_is_there(tmp_path, monkeypatch):
    cells = {name: dict(reference='', seeds={}) for name in
             STUDIES['fig8'].cells(CELLS)}
    for name in ('resnet18/fig8-k2-w2', 'resnet18/fig8-k2-w4',
                 'resnet18/fig8-kinf-w4'):
        cells[name]['seeds']['0'] = dict(metric=50.)
    write_json(tmp_path / 'docs' / 'results' / 'fig8.json', dict(cells=cells))
    monkeypatch.setattr(results_page, 'ROOT', tmp_path)
    results_page.draw_fig8(tmp_path / 'fig8.png')
    assert (tmp_path / 'fig8.png').stat().st_size > 5000


def test_the_page_has_every_study_and_is_what_the_results_give():
    text = results_page.PAGE.read_text()
    shown = [name for _, name, _ in results_page.SECTION.findall(text)]
    assert sorted(shown) == sorted(STUDIES)
    assert results_page.page(text) == text, \
        'run python tools/results_page.py'
