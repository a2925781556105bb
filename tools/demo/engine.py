"""Go through the stages: skip, continue or run each, and show it."""
import shutil
import time

from .process import Display, Lock, run, shown
from .progress import Estimate, StageClock, format_seconds, fraction_done
from .records import decide, read_json, write_json
from .run_configs import Configs
from .stages import all_stages, last_checkpoint, make_job, python
from .summary import summarize, table
from .tasks import QUICK_NOTE, TASKS


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
          f'{format_seconds(estimate.remaining())} on two CPU cores. '
          'Interrupt at will: the same command goes on from there.')
    records, begin = {}, time.monotonic()
    for number, stage in enumerate(stages, 1):
        runner = StageRunner(stage, make_job(stage, configs, records),
                             f'[{number:2d}/{len(stages)}] {stage.name}',
                             estimate, begin)
        records[stage.name] = runner.run(
            lock, display, configs.max_epochs(stage.task, stage.run)
            if stage.kind == 'train' else 1)
    summary = summarize(settings, stages, records)
    write_json(settings.work_dir / 'summary.json', summary)
    print(f'\n{table(summary)}\n')
    for task in settings.tasks:
        print(f'{TASKS[task].title}: {shown(settings.work_dir)}/{task}.png, '
              f'weights_{task}.png')
    print(f'All figures: {shown(settings.work_dir)}/summary.json')


def make_data(settings, lock, display):
    """Make the datasets or check the ones that are there."""
    log_path = settings.work_dir / 'data.log'
    display.finish(f'data in {shown(settings.data)}, log '
                   f'{shown(log_path)}')
    command = python(
        'tools/dataset_converters/make_demo_data.py', shown(settings.data),
        '--tasks', *settings.tasks,
        '--size', 'tiny' if settings.quick else 'demo')
    log_path.unlink(missing_ok=True)
    run(command, log_path, lock, lambda line: display.finish(
        f'    {line.rstrip()}'), lambda: None)


class StageRunner:
    """One stage: its record, its process, its line on the screen.

    Args:
        stage (Stage): The stage.
        job (Job): How to run it.
        label (str): Begins its lines.
        estimate (Estimate): Of the whole demo.
        begin (float): When the demo began, ``time.monotonic()``.
    """

    def __init__(self, stage, job, label, estimate, begin):
        self.stage, self.job, self.label = stage, job, label
        self.estimate, self.begin = estimate, begin

    def run(self, lock, display, max_epochs):
        """Run it, unless it is done.

        Returns:
            dict: Its finished record.
        """
        stage = self.stage
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
                stage.log_path, lock,
                lambda line: self.read(line, clock, max_epochs),
                lambda: display.due() and display.show(self.line(clock)))
            results = self.job.results()
        finally:
            record['seconds'] += clock.elapsed
            write_json(stage.record_path, record)
        record.update(status='done', results=results,
                      outputs=results.pop('outputs'))
        write_json(stage.record_path, record)
        self.estimate.finish(stage.name, None if resume else clock.elapsed)
        display.finish(f'{self.label}: {format_seconds(clock.elapsed)}'
                       f'{outcome(stage, results)}')
        return record

    def read(self, line, clock, max_epochs):
        found = fraction_done(line, max_epochs)
        if found and found[0] == self.stage.kind:
            clock.update(found[1])

    def line(self, clock):
        left = clock.remaining()
        total = self.estimate.remaining(self.stage.name, left)
        return (f'{self.label}: {clock.fraction:4.0%}, '
                f'{format_seconds(clock.elapsed)} elapsed, '
                f'{format_seconds(left)} left; demo '
                f'{format_seconds(time.monotonic() - self.begin)} elapsed, '
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
