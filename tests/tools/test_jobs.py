"""The engine that demo, experiments, sweep and compare share."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools'))

from jobs.engine import Engine, Job, Task, longest_first  # noqa: E402
from jobs.process import Limits, Process  # noqa: E402
from jobs.progress import (  # noqa: E402
    Estimate,
    JobClock,
    format_seconds,
    fraction_done,
)
from jobs.records import (  # noqa: E402
    JobError,
    Lock,
    decide,
    read_json,
    write_json,
)

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


def test_job_clock():
    now = [100.]
    clock = JobClock(expected=60., clock=lambda: now[0])
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
    assert estimate.remaining(dict(b=5.)) == 95
    assert estimate.remaining(dict(b=80., c=1.), lanes=2) == 80  # the longest
    estimate.finish('b')  # done by an earlier run: tells nothing
    assert estimate.remaining() == 90


def test_nobody_knows_before_the_first_job_is_done():
    estimate = Estimate(dict(a=1., b=3.), known=False)
    assert format_seconds(estimate.remaining()) == '?'
    estimate.finish('a', seconds=10.)
    assert estimate.remaining() == 30


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


def test_one_run_at_a_time_in_a_work_dir(tmp_path):
    lock = Lock(tmp_path / 'work')
    with pytest.raises(JobError, match=f'process {os.getpid()}.*--work-dir'):
        Lock(tmp_path / 'work')
    del lock
    Lock(tmp_path / 'work')


# -- jobs that train nothing --------------------------------------------------


def make_jobs(folder, resume=False, **graph):
    """Jobs by name -> what they need; each notes when it begins and ends."""

    def prepare(name, records):
        arguments = dict(name=name, log=str(folder / 'log'))
        return Task(dict(name=name), 'fake_cells:note', arguments,
                    lambda value: dict(results=value, outputs=[]),
                    dict(arguments, name=f'{name} again') if resume else None)

    return [Job(name, folder / name,
                lambda records, name=name: prepare(name, records), needs,
                cost) for name, (cost, *needs) in graph.items()]


def read_log(folder):
    return (folder / 'log').read_text().split('\n')[:-1]


@pytest.mark.parametrize('lanes', [1, 3])
def test_no_job_begins_before_those_it_needs(tmp_path, lanes):
    graph = dict(d=(1, 'b', 'c'), b=(1, 'a'), a=(1, ), c=(1, 'a'), e=(1, ))
    engine = Engine(make_jobs(tmp_path, **graph), lanes)
    assert engine.run() == {} and engine.records.keys() == graph.keys()
    lines, busy = read_log(tmp_path), 0
    for name, (_, *needs) in graph.items():
        for other in needs:
            assert lines.index(f'end {other}') < lines.index(f'begin {name}')
    for line in lines:
        busy += 1 if line.startswith('begin') else -1
        assert busy <= lanes
    assert Engine(make_jobs(tmp_path, **graph), lanes).run() == {}
    assert read_log(tmp_path) == lines  # all is done already


def test_what_most_waits_for_begins_first(tmp_path):
    graph = dict(short=(1, ), long=(2, ), root=(.1, ), leaf=(3, 'root'))
    jobs = longest_first(make_jobs(tmp_path, **graph))
    assert [job.name for job in jobs] == ['root', 'leaf', 'long', 'short']


def test_a_failure_shows_the_log_and_ends_the_run(tmp_path):
    jobs = make_jobs(tmp_path, bad=(1, ), after=(1, 'bad'), other=(1, ))
    with pytest.raises(JobError) as error:
        Engine(jobs, 1, keep_going=False).run()
    message = str(error.value)
    assert 'bad: ValueError: it is bad' in message
    assert 'line 98' in message and 'line 0' not in message
    assert str(tmp_path / 'bad.log') in message
    assert read_log(tmp_path) == ['begin bad']
    jobs = make_jobs(tmp_path, bad=(1, ), after=(1, 'bad'), other=(1, ))
    failed = Engine(jobs, 1).run()
    assert failed['after'] == 'bad failed' and 'bad.log' in failed['bad']
    assert 'end other' in read_log(tmp_path)


@pytest.mark.parametrize('resume', [True, False])
def test_what_was_interrupted_goes_on_where_it_can(tmp_path, resume):
    jobs = make_jobs(tmp_path, resume, bad=(1, ))
    Engine(jobs, 1).run()
    record = read_json(jobs[0].record_path)
    assert record['status'] == 'running' and record['seconds'] > 0
    (tmp_path / 'bad' / 'last.pth').touch()
    Engine(jobs, 1).run()
    again = read_json(jobs[0].record_path)
    assert again['interruptions'] == int(resume)
    assert (tmp_path / 'bad' / 'last.pth').exists() == resume
    assert ('done' if resume else 'running') == again['status']


def run_alone(function, tmp_path, limits=Limits(), **arguments):
    process = Process(f'fake_cells:{function}', arguments, tmp_path / 'log',
                      limits)
    try:
        while True:
            found = process.poll()
            if found is not None:
                return found
            time.sleep(.05)
    finally:
        process.end()


@pytest.mark.parametrize('limits, said', [
    (Limits(seconds=.5), 'more than 0.5 seconds of CPU time'),
    (Limits(gigabytes=.001), 'more than 0.001 GB')])
def test_limits(tmp_path, limits, said):
    assert said in run_alone('burn', tmp_path, limits)['error']


def test_the_limit_of_time_is_one_of_work(tmp_path):
    """A machine that is busy otherwise fails no job; one that hangs fails."""
    assert 'value' in run_alone('sleep', tmp_path, Limits(seconds=.3),
                                seconds=1.)
    assert 'it hangs' in run_alone('sleep', tmp_path, Limits(seconds=.1),
                                   seconds=60.)['error']


def test_all_that_a_process_prints_is_in_its_log(tmp_path):
    for _ in range(2):
        found = run_alone('shout', tmp_path)
    assert found == dict(value=7)
    log = (tmp_path / 'log').read_text()
    for line in ('python', 'warning', 'child'):
        assert log.count(line) == 2  # a job that goes on keeps its log


def test_a_script_runs_as_from_its_command_line(tmp_path):
    from jobs.process import run_script
    assert run_script.__module__ == 'jobs.process'
    process = Process('jobs.process:run_script', dict(command=[
        'tools/dataset_converters/make_demo_data.py', '--seed', '-1',
        str(tmp_path)]), tmp_path / 'log')
    while process.poll() is None:
        time.sleep(.05)
    log = (tmp_path / 'log').read_text()
    assert log.startswith('$ python tools/dataset_converters/make_demo_data')
    assert '--seed must be 0 or more' in log


RUN = '''
import sys
from pathlib import Path
from jobs.engine import Engine, Job, Task
from jobs.process import prepare_environment
if __name__ == '__main__':
    prepare_environment()
    folder = Path(sys.argv[1])
    Engine([Job('job', folder / 'job', lambda records: Task(
        {}, 'fake_cells:wait', dict(folder=str(folder / 'job')), dict))]).run()
'''


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT,
                                    signal.SIGKILL])
def test_jobs_and_their_children_end_with_the_run(tmp_path, number):
    """Else the next run and they would write to the same folder."""
    main = subprocess.Popen(
        [sys.executable, '-c', RUN, str(tmp_path)], stderr=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=(
            f'{ROOT / "tools"}:{Path(__file__).parent}')),
        # A shell starts what runs in the background with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    pids = tmp_path / 'job' / 'pids'
    try:
        wait_for(lambda: pids.exists() and pids.read_text().endswith('\n'))
        main.send_signal(number)
        main.wait(60)
    finally:
        main.kill()
        main.wait()
    assert main.returncode == dict(
        SIGTERM=143, SIGINT=-signal.SIGINT, SIGKILL=-signal.SIGKILL)[
            signal.Signals(number).name]
    for pid in pids.read_text().split():
        wait_for(lambda pid=pid: not alive(pid))
    record = read_json(tmp_path / 'job.json')
    assert record['status'] == 'running'
    assert number == signal.SIGKILL or record['seconds'] > 0


def alive(pid):
    try:
        state = Path('/proc', pid, 'stat').read_text().rpartition(')')[2]
    except OSError:
        return False
    return state.split()[0] != 'Z'


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(.1)
    raise AssertionError('a minute has passed')
