import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
sys.path.insert(0, str(TOOLS))

from demo_stages.engine import make_jobs, outcome  # noqa: E402
from demo_stages.run_configs import Configs, Settings, parse_options  # noqa: E402
from demo_stages.stages import all_stages, prepare  # noqa: E402
from demo_stages.summary import cell, spread, summarize, table  # noqa: E402
from demo_stages.tasks import RUNS, TASKS  # noqa: E402
from jobs.records import write_json  # noqa: E402


@pytest.fixture
def settings(tmp_path):
    for task in TASKS.values():
        write_json(tmp_path / 'data' / task.folder / 'demo_data.json',
                   dict(counts=[1600, 500], seed=0))
    return Settings(['det', 'seg', 'cls'], [3, 5], tmp_path / 'work',
                    tmp_path / 'data', quick=True)


def test_stages(settings):
    stages = all_stages(settings)
    assert len({stage.name for stage in stages}) == len(stages) == 57
    assert len({stage.folder for stage in stages}) == 57
    # Published and looked at: the first seed only.
    assert {stage.seed for stage in stages
            if stage.kind in ('publish', 'look')} == {3}
    configs = Configs(settings)
    assert all(configs.cost(stage) > 0 for stage in stages)


def trained_record(stage, root):
    path = stage.folder.relative_to(root) / 'last.pth'
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(stage.name)
    return dict(results=dict(checkpoint=str(path)))


@pytest.mark.parametrize('task', TASKS)
def test_jobs(settings, task):
    configs, records = Configs(settings), {}
    stages = {(stage.run, stage.kind): stage for stage in
              all_stages(settings) if stage.task == task and stage.seed == 3}
    train = stages['start', 'train']
    job = prepare(train, configs, records)
    command = job.arguments['command']
    assert 'randomness.seed=3' in command and 'load_from=None' in command
    assert '--resume' not in command and job.resume is None
    records[train.name] = trained_record(train, settings.work_dir)

    train = stages['w2a4', 'train']
    saved = train.folder / 'epoch_1.pth'
    train.folder.mkdir(parents=True)
    saved.touch()
    (train.folder / 'last_checkpoint').write_text(str(saved))
    job = prepare(train, configs, records)
    checkpoint = str(settings.work_dir
                     / records[stages['start', 'train'].name]['results']
                     ['checkpoint'])
    assert f'load_from={checkpoint}' in job.arguments['command']
    # What is resumed must not be loaded over by the float model.
    resume = job.resume['command']
    assert '--resume' in resume and 'load_from=None' in resume
    assert not any(checkpoint in part for part in resume)
    # mmdet's --resume takes a value: it must not swallow the config.
    assert resume[resume.index('--resume') + 1] == '--cfg-options'
    # Another float model: the quantized one is trained anew.
    Path(checkpoint).write_text('another')
    again = prepare(train, configs, records)
    assert again.inputs['load_from'] != job.inputs['load_from']
    assert json.loads(json.dumps(again.inputs)) == again.inputs


def test_options_are_read_as_the_tools_do():
    assert parse_options(['a.b=2', 'c=False', 'd=x/y/', 'e=None', 'f=1,2']) \
        == {'a.b': 2, 'c': False, 'd': 'x/y/', 'e': None, 'f': [1, 2]}


def finished(settings):
    """Stages with invented results."""
    stages, records = all_stages(settings), {}
    for index, stage in enumerate(stages):
        shares = dict(weight_share=.975, mac_share=.9, bytes=1,
                      weight_share_by_bits={'2': .965, '8': .01},
                      mac_share_by_bits={'2': .8, '8': .1})
        results = dict(
            train=dict(checkpoint='x.pth'),
            test=dict(metric=80. - RUNS.index(stage.run) - stage.seed
                      if stage.kind == 'test' else 0),
            publish=dict(checkpoint='a/p.pth', config='a/p.py', bytes=250000),
            look=dict(device='CPU', runs={
                'float': dict(bytes=2_000_000), 'w4a4': dict(shares),
                'w2a4': dict(shares)}))[stage.kind]
        records[stage.name] = dict(
            results=results, seconds=60., interruptions=0,
            inputs=dict(data=dict(counts=[12, 12])))
    return stages, records


def test_summary_and_table(settings):
    stages, records = finished(settings)
    summary = summarize(settings, stages, records)
    assert json.loads(json.dumps(summary)) == summary
    det = summary['tasks']['det']
    assert det['runs']['start']['metric'] == dict(mean=76., min=75., max=77.)
    assert det['runs']['float']['metric'] == dict(mean=75., min=74., max=76.)
    assert det['runs']['w2a4']['drop'] == dict(mean=2., min=2., max=2.)
    assert det['per_seed']['5']['w4a4']['metric'] == 73.
    assert det['images'] == [12, 12]
    lines = table(summary).splitlines()
    assert len({len(line) for line in lines[:5]}) == 1
    assert [value.strip() for value in lines[2].split('|')[1:-1]] == [
        'Faster R-CNN, VOC format', 'mAP', '76.0 (75.0 to 77.0)',
        '75.0 (74.0 to 76.0)', '74.0 (73.0 to 75.0)', '1.0',
        '73.0 (72.0 to 74.0)', '2.0',
        '97.5% / 90.0% (8 bit: 1.0% / 10.0%)', '2000 / 250 / 250 kB']
    assert 'seeds 3, 5' in lines[-1]


def test_quick_figures_are_no_results(settings):
    summary = summarize(settings, *finished(settings))
    assert summary['are_results'] is False
    assert 'no results' in summary['note'] and 'no results' in table(summary)


def test_cell():
    assert cell(spread([91.24])) == '91.2'
    assert cell(spread([91., 92.])) == '91.5 (91.0 to 92.0)'


def test_outcome(settings):
    stage = [s for s in all_stages(settings) if s.kind == 'test'][0]
    assert outcome(stage, dict(metric=91.236)) == 'mAP 91.24'


def demo(*arguments):
    return subprocess.run(
        [sys.executable, str(TOOLS / 'demo.py'), *map(str, arguments)],
        capture_output=True, text=True)


def test_table_command(settings, tmp_path):
    summary = summarize(settings, *finished(settings))
    path = tmp_path / 'summary.json'
    write_json(path, summary)
    done = demo('--table', path)
    assert done.returncode == 0 and done.stdout == table(summary) + '\n'


def test_jobs_need_what_they_are_made_from(settings):
    stages = all_stages(settings)
    jobs = make_jobs(stages, Configs(settings))
    names = [job.name for job in jobs]
    assert sorted(names) == sorted(stage.name for stage in stages)
    needed = {job.name: set(job.needs) for job in jobs}
    assert all(names.index(other) < names.index(name)
               for name in names for other in needed[name])
    for stage in stages:
        found = needed[stage.name]
        if stage.run not in ('start', 'all') and stage.kind == 'train':
            assert found == {stage.other('train', 'start').name}
        if stage.kind in ('test', 'publish'):
            assert found == {stage.other('train').name}
        if stage.kind == 'look':
            assert found == {other.name for other in stages if (
                other.task, other.seed) == (stage.task, stage.seed)} - {
                    stage.name}


def test_bad_arguments(tmp_path):
    done = demo('--table', tmp_path / 'nothing.json')
    assert done.returncode == 1 and 'is no summary of a demo' in done.stderr
    assert 'Traceback' not in done.stderr
    done = demo('--seeds', '-1')
    assert done.returncode == 2 and 'must be 0 or more' in done.stderr
