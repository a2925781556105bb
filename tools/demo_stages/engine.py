"""Go through the stages: skip, continue or run each, and show it."""
import os
import shutil
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from .process import DemoError, Display, Lock, run, shown
from .progress import (
    Estimate,
    StageClock,
    format_seconds,
    fraction_done,
)
from .records import decide, read_json, write_json
from .run_configs import Configs
from .stages import all_stages, last_checkpoint, make_job, python
from .summary import summarize, table
from .tasks import QUICK_NOTE, START, TASKS


def run_demo(settings):
    """Run all stages that are not done, then write summary and table.

    Args:
        settings (Settings): What was asked for.

    Raises:
        DemoError: A stage failed, or another demo is at work.
    """
    lock, display = Lock(settings.work_dir), Display()
    if settings.quick:
        print(QUICK_NOTE)
    make_data(settings, lock, display)
    configs, stages = Configs(settings), all_stages(settings)
    estimate = Estimate({stage.name: configs.cost(stage)
                         for stage in stages})
    print(f'{len(stages)} stages in {shown(settings.work_dir)}, up to about '
          f'{format_seconds(estimate.remaining() / 2)} on two CPU cores. '
          'Interrupt at will: the same command goes on from there.')
    # As many processes at a time as there are cores, which small models use
    # better than several threads each.
    lanes = min(os.cpu_count(), len(settings.tasks) * len(settings.runs))
    demo = Demo(lock, display, configs, estimate, lanes, len(stages))
    demo.run_all(stages)
    records = demo.records
    summary = summarize(settings, stages, records)
    write_json(settings.work_dir / 'summary.json', summary)
    print(f'\n{table(summary)}\n')
    for task in settings.tasks:
        print(f'{TASKS[task].title}: {shown(settings.work_dir)}/{task}.png, '
              f'weights_{task}.png')
    print(f'All figures: {shown(settings.work_dir)}/summary.json')


def make_data(settings, lock, display):
    """Make the datasets or check the ones that are there, side by side."""
    display.finish(f'data in {shown(settings.data)}, logs '
                   f'{shown(settings.work_dir)}/data_*.log')
    stopped = threading.Event()

    def tick():
        if stopped.is_set():
            raise DemoError('ended, because the demo was')

    def make(task):
        log_path = settings.work_dir / f'data_{task}.log'
        log_path.unlink(missing_ok=True)
        run(python('tools/dataset_converters/make_demo_data.py',
                   shown(settings.data), '--tasks', task, '--size',
                   'tiny' if settings.quick else 'demo'), log_path, lock,
            lambda line: display.finish(f'    {line.rstrip()}'), tick)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for future in [pool.submit(make, task)
                           for task in settings.tasks]:
                future.result()
        except BaseException:
            stopped.set()
            raise


class Demo:
    """What the stages of all lanes share.

    Args:
        lock (Lock): Lock of the work dir.
        display (Display): Where progress is shown.
        configs (Configs): All configs.
        estimate (Estimate): Estimate of the whole demo.
        lanes (int): Stages that run at a time.
        number (int): Number of all stages.
    """

    def __init__(self, lock, display, configs, estimate, lanes, number):
        self.lock, self.display, self.configs = lock, display, configs
        self.estimate, self.lanes, self.number = estimate, lanes, number
        self.records = {}
        self.begin = time.monotonic()
        self.stopped = False

    def run_all(self, stages):
        """Run the stages of each training one after the other, and those of
        different trainings side by side: first those that most waits for,
        so that no lane is left alone with a long rest."""
        chains = {}
        for number, stage in enumerate(stages, 1):
            key = stage.task, stage.seed, stage.run
            chains.setdefault(key, []).append((number, stage))
        first = sorted(chains, key=lambda key: -self.longest(key, chains))
        waiting, running = {key: chains[key] for key in first}, {}
        with ThreadPoolExecutor(self.lanes) as pool:
            try:
                while waiting or running:
                    for key in list(waiting):
                        if len(running) < self.lanes and not any(
                                other in (*waiting, *running.values())
                                for other in needs(key, chains)):
                            future = pool.submit(self.run_chain,
                                                 waiting.pop(key))
                            running[future] = key
                    for future in wait(running,
                                       return_when=FIRST_COMPLETED).done:
                        del running[future]
                        future.result()
            except BaseException:  # an interruption, too, ends every lane
                self.stopped = True
                raise

    def longest(self, key, chains):
        """Seconds from the begin of a training to the end of the last that
        needs it, were there lanes for all."""
        own = sum(self.configs.cost(stage) for _, stage in chains[key])
        return own + max((self.longest(other, chains) for other in chains
                          if key in needs(other, chains)), default=0.)

    def run_chain(self, numbered_stages):
        """Run stages one after the other."""
        for number, stage in numbered_stages:
            if self.stopped:
                return
            job = make_job(stage, self.configs, self.records)
            label = f'[{number:2d}/{self.number}] {stage.name}'
            self.records[stage.name] = StageRunner(
                self, stage, job, label).run()


def needs(key, keys):
    """Trainings that must be done before another begins.

    Args:
        key (tuple): Task, seed and run.
        keys (iterable[tuple]): All of them.
    """
    task, seed, run = key
    if run == START:
        return []
    return [other for other in keys if other[:2] == (task, seed)
            and other != key and (run == 'all' or other[2] == START)]


class StageRunner:
    """One stage: its record, its process, its line on the screen.

    Args:
        demo (Demo): What it shares with the others.
        stage (Stage): The stage.
        job (Job): How to run it.
        label (str): Begins its lines.
    """

    def __init__(self, demo, stage, job, label):
        self.demo, self.stage, self.job, self.label = demo, stage, job, label
        self.estimate = demo.estimate
        self.max_epochs = demo.configs.max_epochs(
            stage.task, stage.run) if stage.kind == 'train' else 1

    def run(self):
        """Run it, unless it is done.

        Returns:
            dict: Its finished record.
        """
        stage, display = self.stage, self.demo.display
        record = read_json(stage.record_path)
        decision, why = decide(record, self.job.inputs,
                               stage.settings.work_dir)
        if decision == 'done':
            self.estimate.finish(stage.name)
            display.finish(f'{self.label}: done already'
                           f'{outcome(stage, record["results"])}')
            return record
        resume = (decision == 'continue' and self.job.resume is not None
                  and last_checkpoint(stage) is not None)
        if not resume:
            shutil.rmtree(stage.folder, ignore_errors=True)
            stage.log_path.unlink(missing_ok=True)
        stage.folder.mkdir(parents=True, exist_ok=True)
        before = record if resume else dict(seconds=0., interruptions=-1)
        record = dict(status='running', inputs=self.job.inputs,
                      seconds=before['seconds'],
                      interruptions=before['interruptions'] + 1)
        write_json(stage.record_path, record)
        display.finish(f'{self.label}: {"goes on" if resume else "starts"} '
                       f'({why}), log {shown(stage.log_path)}')
        clock = StageClock(self.estimate.expect(stage.name))
        try:
            run(self.job.resume if resume else self.job.command,
                stage.log_path, self.demo.lock,
                lambda line: self.read(line, clock),
                lambda: self.tick(clock),
                max(os.cpu_count() // self.demo.lanes, 1))
            results = self.job.results()
        finally:
            record['seconds'] += clock.elapsed
            write_json(stage.record_path, record)
        record.update(status='done', results=results,
                      outputs=results.pop('outputs'))
        write_json(stage.record_path, record)
        self.estimate.finish(stage.name, None if resume else clock.elapsed)
        display.finish(f'{self.label}: {format_seconds(clock.elapsed)}'
                       f'{outcome(stage, results)}', stage.name)
        return record

    def read(self, line, clock):
        found = fraction_done(line, self.max_epochs)
        if found and found[0] == self.stage.kind:
            clock.update(found[1])

    def tick(self, clock):
        """Show where it is; end it where another lane failed."""
        demo, left = self.demo, clock.remaining()
        if demo.stopped:
            raise DemoError('ended, because the demo was')
        # Lanes share what the other stages take.
        total = max(left, self.estimate.remaining(self.stage.name, left)
                    / demo.lanes)
        demo.display.show(
            self.stage.name,
            f'{self.stage.name} {clock.fraction:.0%}, '
            f'{format_seconds(left)} left',
            f'demo {format_seconds(time.monotonic() - demo.begin)} elapsed, '
            f'{format_seconds(total)} left')


def outcome(stage, results):
    """What a finished stage has to tell, in a few words."""
    if stage.kind == 'test':
        task = TASKS[stage.task]
        return f', {task.metric_name} {results["metric"]:.2f}'
    if stage.kind == 'publish':
        return (f', {results["checkpoint"].rpartition("/")[2]} '
                f'({results["bytes"] / 1e3:.0f} kB)')
    return ''
