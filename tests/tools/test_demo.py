import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
sys.path.insert(0, str(TOOLS))

from demo_stages import engine  # noqa: E402
from demo_stages.engine import Demo, outcome  # noqa: E402
from demo_stages.process import DemoError, Lock, run  # noqa: E402
from demo_stages.progress import (  # noqa: E402
    Estimate,
    StageClock,
    format_seconds,
    fraction_done,
)
from demo_stages.records import decide, read_json, write_json  # noqa: E402
from demo_stages.run_configs import Configs, Settings, parse_options  # noqa: E402
from demo_stages.stages import all_stages, make_job  # noqa: E402
from demo_stages.summary import cell, spread, summarize, table  # noqa: E402
from demo_stages.tasks import RUNS, TASKS  # noqa: E402

# Lines as mmengine 0.10.7 prints them.
DATE = '2026/11/22 00:23:02 - mmengine - INFO - '


@pytest.mark.parametrize('line, expected', [
    ('Epoch(train)  [1][ 20/200]  lr: 6.9604e-04  eta: 0:05:34  time: 0.4294'
     '  data_time: 0.0222  loss: 2.0172', ('train', .01)),
    ('Epoch(train) [10][200/200]  lr: 2.0e-05  loss: 0.2', ('train', 1.)),
    ('Epoch(train)  [3][100/200]  lr: 2.0e-05  loss: 0.2', ('train', .25)),
    ('Iter(train) [120/600]  lr: 1.1e-03  eta: 0:01:10  loss: 1.0',
     ('train', .2)),
    ('Iter(train) [ 20/600]  lr: 1.1e-03  loss: 1.0', ('train', 1 / 30)),
    ('Epoch(test) [10/50]    eta: 0:00:03  time: 0.1162  data_time: 0.0186',
     ('test', .2)),
    ('Epoch(test) [50/50]    pascal_voc/mAP: 0.7473  time: 0.1117',
     ('test', 1.)),
    ('Iter(test) [25/25]    aAcc: 90.1  mIoU: 61.2', ('test', 1.)),
    ('Epoch(val) [2][20/50]    eta: 0:00:03  time: 0.1162', None),
    ('Iter(val) [20/25]    eta: 0:00:03  time: 0.1162', None),
    ('Saving checkpoint at 1 epochs', None),
    ('', None)])
def test_fraction_done(line, expected):
    found = fraction_done(DATE + line, max_epochs=10)
    if expected is None:
        assert found is None
    else:
        assert found[0] == expected[0]
        assert found[1] == pytest.approx(expected[1])


@pytest.mark.parametrize('seconds, text', [
    (0, '0:00:00'), (59.6, '0:01:00'), (3725, '1:02:05'), (-3, '0:00:00')])
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_stage_clock():
    now = [100.]
    clock = StageClock(expected=60., clock=lambda: now[0])
    assert clock.remaining() == 60
    now[0] = 110.
    assert clock.remaining() == 50
    now[0] = 200.
    assert clock.remaining() == pytest.approx(10)  # late, but not "0 left"
    # A resumed training: half of it was there; a tenth takes 20 seconds.
    clock.update(.5)
    now[0] = 220.
    clock.update(.6)
    assert clock.remaining() == pytest.approx(80)
    now[0] = 225.
    assert clock.remaining() == pytest.approx(75)
    assert clock.elapsed == 125 and clock.fraction == .6


def test_estimate():
    estimate = Estimate(dict(a=10., b=20., c=30.))
    assert estimate.remaining() == 60
    estimate.finish('a', seconds=30.)  # this machine: three times as slow
    assert estimate.expect('b') == 60
    assert estimate.remaining() == 150
    assert estimate.remaining('b', 5.) == 95
    estimate.finish('b')  # done by an earlier demo: tells nothing
    assert estimate.remaining() == 90


def test_records_are_written_whole(tmp_path):
    path = tmp_path / 'new' / 'record.json'
    write_json(path, dict(a=[1, 2]))
    assert read_json(path) == dict(a=[1, 2])
    with pytest.raises(TypeError):
        write_json(path, dict(a=object()))
    assert read_json(path) == dict(a=[1, 2])
    assert read_json(tmp_path / 'missing.json') is None
    path.write_text('{"a": [1,')
    assert read_json(path) is None


def test_decide(tmp_path):
    inputs = dict(config='c0', seed=0)
    done = dict(status='done', inputs=inputs, outputs=['model.pth'])
    assert decide(None, inputs, tmp_path)[0] == 'start'
    decision, why = decide(done, inputs, tmp_path)
    assert decision == 'start' and 'model.pth is missing' in why
    (tmp_path / 'model.pth').touch()
    assert decide(done, inputs, tmp_path)[0] == 'done'
    running = dict(status='running', inputs=inputs)
    assert decide(running, inputs, tmp_path)[0] == 'continue'
    for record in (done, running):
        decision, why = decide(record, dict(config='c1', seed=0, load_from=1),
                               tmp_path)
        assert decision == 'start' and 'config, load_from' in why


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
    assert len({stage.record_path for stage in stages}) == 57
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
    job = make_job(train, configs, records)
    assert 'randomness.seed=3' in job.command
    assert 'load_from=None' in job.command and '--resume' not in job.command
    records[train.name] = trained_record(train, settings.work_dir)

    train = stages['w2a4', 'train']
    job = make_job(train, configs, records)
    checkpoint = str(settings.work_dir
                     / records[stages['start', 'train'].name]['results']
                     ['checkpoint'])
    assert f'load_from={checkpoint}' in job.command
    # What is resumed must not be loaded over by the float model.
    assert '--resume' in job.resume and 'load_from=None' in job.resume
    assert not any(checkpoint in part for part in job.resume)
    # mmdet's --resume takes a value: it must not swallow the config.
    assert job.resume[job.resume.index('--resume') + 1] == '--cfg-options'
    # Another float model: the quantized one is trained anew.
    Path(checkpoint).write_text('another')
    again = make_job(train, configs, records)
    assert again.inputs['load_from'] != job.inputs['load_from']
    assert json.loads(json.dumps(again.inputs)) == again.inputs


def test_options_are_read_as_the_tools_do():
    assert parse_options(['a.b=2', 'c=False', 'd=x/y/', 'e=None', 'f=1,2']) \
        == {'a.b': 2, 'c': False, 'd': 'x/y/', 'e': None, 'f': [1, 2]}


def test_lock(tmp_path):
    lock = Lock(tmp_path / 'work')
    with pytest.raises(DemoError, match=f'process {os.getpid()}'):
        Lock(tmp_path / 'work')
    lock.file.close()
    Lock(tmp_path / 'work').file.close()


def test_lock_outlives_a_killed_demo(tmp_path):
    lock = Lock(tmp_path)
    process = subprocess.Popen(
        [sys.executable, '-c', 'import time; time.sleep(60)'],
        pass_fds=[lock.fileno()])
    lock.pids = {process.pid}
    lock.note()
    lock.file.close()
    with pytest.raises(DemoError, match=f'process {process.pid}'):
        Lock(tmp_path)
    process.kill()
    process.wait()
    Lock(tmp_path).file.close()


def test_run(tmp_path):
    lines = []
    command = [sys.executable, '-c', 'print("one"); print("two")']
    log = tmp_path / 'a' / 'stage.log'
    for _ in range(2):
        run(command, log, Lock(tmp_path), lines.append, lambda: None)
    assert lines == ['one\n', 'two\n'] * 2
    assert log.read_text().count('one\n') == 2  # a continued stage appends


def test_failure_shows_log_and_command(tmp_path):
    code = 'import sys\nfor i in range(99): print("line", i)\nsys.exit(3)'
    with pytest.raises(DemoError) as error:
        run([sys.executable, '-c', code], tmp_path / 'stage.log',
            Lock(tmp_path), lambda line: None, lambda: None)
    message = str(error.value)
    assert 'exit code 3' in message and 'line 98' in message
    assert 'line 69\n' in message and 'line 68\n' not in message
    assert f'{sys.executable} -c' in message
    assert str(tmp_path / 'stage.log') in message


def test_interrupt_ends_the_process(tmp_path):
    """Also when it has children of its own, as data loaders are."""
    code = ('import subprocess, sys, time\n'
            'child = subprocess.Popen([sys.executable, "-c", '
            '"import time; time.sleep(60)"])\n'
            'print(child.pid)\ntime.sleep(60)')
    pids = []

    def on_tick():
        if pids:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([sys.executable, '-c', code], tmp_path / 'stage.log',
            Lock(tmp_path), lambda line: pids.append(int(line)), on_tick)
    for _ in range(50):
        if not alive(pids[0]):
            break
        time.sleep(.1)
    assert not alive(pids[0])


def alive(pid):
    try:
        state = Path(f'/proc/{pid}/stat').read_text().split()[2]
    except FileNotFoundError:
        return False
    return state != 'Z'


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
    assert outcome(stage, dict(metric=91.236)) == ', mAP 91.24'


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


EVEN = SimpleNamespace(cost=lambda stage: 1.)


@pytest.mark.parametrize('lanes', [1, 2, 3])
def test_no_stage_begins_before_those_it_needs(settings, monkeypatch, lanes):
    stages, log, busy = all_stages(settings), [], []

    class Runner:

        def __init__(self, demo, stage, job, label):
            self.stage = stage

        def run(self):
            busy.append(self.stage)
            assert len(busy) <= lanes
            time.sleep(.002 if self.stage.task == 'det' else .001)
            log.append(self.stage.name)
            busy.remove(self.stage)
            return {}

    monkeypatch.setattr(engine, 'StageRunner', Runner)
    monkeypatch.setattr(engine, 'make_job', lambda stage, *_: None)
    demo = Demo(None, None, EVEN, None, lanes, len(stages))
    demo.run_all(stages)
    assert sorted(log) == sorted(stage.name for stage in stages)
    assert set(demo.records) == set(log)
    for stage in stages:
        begun = log.index(stage.name)
        if stage.run != 'start':
            start = stage.other('test', 'start')
            assert log.index(start.name) < begun
        if stage.kind in ('test', 'publish'):
            assert log.index(stage.other('train').name) < begun
        if stage.kind == 'look':
            assert all(log.index(other.name) <= begun for other in stages
                       if (other.task, other.seed)
                       == (stage.task, stage.seed))


def test_what_most_waits_for_begins_first(settings, monkeypatch):
    log = []

    class Runner:

        def __init__(self, demo, stage, job, label):
            self.stage = stage

        def run(self):
            log.append((self.stage.task, self.stage.run))
            return {}

    def cost(stage):
        return dict(det=2., seg=3., cls=1.)[stage.task] * dict(
            start=1., w2a4=2.).get(stage.run, .1)

    monkeypatch.setattr(engine, 'StageRunner', Runner)
    monkeypatch.setattr(engine, 'make_job', lambda stage, *_: None)
    stages = all_stages(settings)
    demo = Demo(None, None, SimpleNamespace(cost=cost), None, 1, len(stages))
    demo.run_all(stages)
    order = list(dict.fromkeys(log))
    trainings = [each for each in order if each[1] in ('start', 'w2a4')]
    assert trainings == [
        ('seg', 'start'), ('seg', 'w2a4'), ('det', 'start'), ('det', 'w2a4'),
        ('cls', 'start'), ('cls', 'w2a4')]
    assert order[-1] == ('cls', 'all')


def test_a_failed_stage_ends_the_demo(settings, monkeypatch):
    begun = []

    class Runner:

        def __init__(self, demo, stage, job, label):
            self.stage = stage

        def run(self):
            begun.append(self.stage.name)
            if self.stage.run == 'float':
                raise DemoError('no checkpoint')
            return {}

    monkeypatch.setattr(engine, 'StageRunner', Runner)
    monkeypatch.setattr(engine, 'make_job', lambda stage, *_: None)
    stages = all_stages(settings)
    demo = Demo(None, None, EVEN, None, 1, len(stages))
    with pytest.raises(DemoError, match='no checkpoint'):
        demo.run_all(stages)
    assert demo.stopped and not any('look' in name for name in begun)


def test_bad_arguments(tmp_path):
    done = demo('--table', tmp_path / 'nothing.json')
    assert done.returncode == 1 and 'is no summary of a demo' in done.stderr
    assert 'Traceback' not in done.stderr
    done = demo('--seeds', '-1')
    assert done.returncode == 2 and 'must be 0 or more' in done.stderr


def test_terminate_is_passed_on(tmp_path):
    """A plain kill of the demo ends the stage that runs."""
    code = ('import signal, sys; sys.path.insert(0, sys.argv[1])\n'
            'signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n'
            'from pathlib import Path\n'
            'from demo_stages.process import Lock, run\n'
            'work = Path(sys.argv[2])\n'
            'run([sys.executable, "-c", "import time; print(1); '
            'time.sleep(60)"], work / "log", Lock(work), print, '
            'lambda: None)')
    process = subprocess.Popen(
        [sys.executable, '-c', code, str(TOOLS), str(tmp_path)],
        stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    pids = {int(pid) for pid in (tmp_path / '.lock').read_text().split()}
    stage, = pids - {process.pid}
    assert alive(stage)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert not alive(stage)
