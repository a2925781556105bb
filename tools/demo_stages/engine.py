"""Go through the stages: make the data, run all jobs, sum up."""
import sys

from jobs.checkout import ROOT, cores, shown
from jobs.engine import Engine, Job, longest_first
from jobs.process import prepare_environment, server
from jobs.progress import format_seconds
from jobs.records import JobError, Lock, write_json

from .run_configs import Configs
from .stages import all_stages, needs, prepare
from .summary import summarize, table
from .tasks import QUICK_NOTE, TASKS

PRELOAD = ('torch', 'mmcv', 'mmengine.runner', 'gdrq_mm')


def run_demo(settings):
    """Run all stages that are not done, then write summary and table.

    Args:
        settings (Settings): What was asked for.

    Raises:
        JobError: A stage failed, or another demo is at work.
    """
    lock = Lock(settings.work_dir)  # held until the end
    if settings.quick:
        print(QUICK_NOTE)
    # As many processes at a time as there are cores, which small models use
    # better than several threads each.
    lanes = min(cores(), len(settings.tasks) * len(settings.runs))
    prepare_environment(max(cores() // lanes, 1))
    make_data(settings)
    configs, stages = Configs(settings), all_stages(settings)
    engine = Engine(make_jobs(stages, configs), lanes, settings.work_dir,
                    preload=PRELOAD, keep_going=False, known_costs=True)
    print(f'{len(stages)} stages in {shown(settings.work_dir)}, up to about '
          f'{format_seconds(engine.estimate.remaining() / 2)} on two CPU '
          'cores. Interrupt at will: the same command goes on from there.')
    engine.run()
    summary = summarize(settings, stages, engine.records)
    write_json(settings.work_dir / 'summary.json', summary)
    del lock
    print(f'\n{table(summary)}\n')
    for task in settings.tasks:
        print(f'{TASKS[task].title}: {shown(settings.work_dir)}/{task}.png, '
              f'weights_{task}.png')
    print(f'All figures: {shown(settings.work_dir)}/summary.json')


def make_data(settings):
    """Make the datasets or check the ones that are there, side by side."""
    print(f'data in {shown(settings.data)}')
    sys.path.insert(0, str(ROOT / 'tools' / 'dataset_converters'))
    from make_demo_data import DemoDataError, make
    with server(PRELOAD).Pool(cores()) as pool:
        try:
            pool.starmap(make, [
                (task, settings.data, 0, 'tiny' if settings.quick else 'demo')
                for task in settings.tasks])
        except DemoDataError as error:
            raise JobError(str(error)) from None


def make_jobs(stages, configs):
    """Jobs of all stages: first those that most waits for."""
    return longest_first([Job(
        stage.name, stage.folder,
        lambda records, stage=stage: prepare(stage, configs, records),
        needs=[other.name for other in needs(stage, stages)],
        cost=configs.cost(stage),
        tell=lambda record, stage=stage: outcome(stage, record['results']))
        for stage in stages])


def outcome(stage, results):
    """What a finished stage has to tell, in a few words."""
    if stage.kind == 'test':
        return f'{TASKS[stage.task].metric_name} {results["metric"]:.2f}'
    if stage.kind == 'publish':
        return (f'{results["checkpoint"].rpartition("/")[2]} '
                f'({results["bytes"] / 1e3:.0f} kB)')
    return ''
