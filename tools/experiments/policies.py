"""Proposed policies and the uniform ones of the same size, both trained.

Usage: python tools/experiments/policies.py [--tasks det seg cls]
       [--seeds 0 1 2] [--jobs 2]

For each task of the demo and each seed: its float model (taken over where
tools/demo.py has trained it), then "gdrq analyze policy --measure --train"
with the demo's [2,4] config. What is done is kept: the same command goes on.
"""
import argparse
import os
import sys
from pathlib import Path

from records import ROOT, environment, spread, write_json

sys.path.insert(0, str(ROOT / 'tools'))

from demo_stages.engine import PRELOAD, make_data, make_jobs  # noqa: E402
from demo_stages.run_configs import (  # noqa: E402
    Configs,
    Settings,
    parse_options,
)
from demo_stages.stages import Stage  # noqa: E402
from demo_stages.tasks import START, TASKS  # noqa: E402
from jobs.checkout import cores, gdrq_mm_version  # noqa: E402
from jobs.engine import Engine, Job, Task, check_failed  # noqa: E402
from jobs.process import prepare_environment  # noqa: E402
from jobs.records import (  # noqa: E402
    JobError,
    Lock,
    file_hash,
    markdown,
)

RUN = 'w2a4'
SECONDS = 400.  # a guess for one core
POLICIES = ('proposed', 'config')


def run_policy(config: str, checkpoint: str, folder: str,
               options: dict) -> dict:
    """Propose, calibrate, train and test, in a process of its own."""
    from gdrq_mm.openmmlab.policy import propose_policy
    os.chdir(ROOT)
    found = propose_policy(
        config, checkpoint, f'{folder}/measured.json', calibrated=True,
        train=folder, cfg_options=options)
    return dict(
        float_metric=found.float_metric, rules=found.rules,
        policies={policy.name: dict(
            size=policy.size, bops=policy.bops, noise=policy.noise,
            predicted=policy.metric, calibrated=policy.calibrated.metric,
            trained=policy.trained,
            bits={name: list(bits)
                  for name, bits in policy.choice.items()})
            for policy in found.policies})


class Study:
    """Its jobs: each float model, then the policies that begin with it."""

    def __init__(self, args) -> None:
        self.settings = Settings(args.tasks, args.seeds, args.demo.resolve(),
                                 args.data.resolve(), args.quick, [RUN])
        self.configs = Configs(self.settings)
        self.folder = args.work_dir.resolve()
        self.starts = [Stage(task, seed, START, 'train', self.settings)
                       for seed in args.seeds for task in args.tasks]

    def jobs(self):
        return make_jobs(self.starts, self.configs) + [
            Job(policy_name(start), self.path(start),
                lambda records, start=start: self.task(start, records),
                needs=[start.name], cost=SECONDS)
            for start in self.starts]

    def path(self, start: Stage) -> Path:
        return self.folder / f'{start.task}-seed{start.seed}'

    def inputs(self, start: Stage, checkpoint: Path) -> dict:
        return dict(config=self.configs.hash(start.task, RUN),
                    data=self.configs.stamp(start.task), seed=start.seed,
                    load_from=file_hash(checkpoint),
                    gdrq_mm=gdrq_mm_version())

    def task(self, start: Stage, records: dict) -> Task:
        checkpoint = self.settings.work_dir / records[start.name][
            'results']['checkpoint']
        options = parse_options([*self.configs.options(start.task),
                                 f'randomness.seed={start.seed}'])
        arguments = dict(
            config=self.configs.path(start.task, RUN),
            checkpoint=str(checkpoint), folder=str(self.path(start)),
            options=options)
        return Task(self.inputs(start, checkpoint),
                    'experiments.policies:run_policy', arguments,
                    lambda found: dict(results=found, outputs=[]),
                    resume=arguments)

    def result(self, records: dict) -> dict:
        """What is done, by task and seed; metrics as evaluators give them."""
        found = {task: {} for task in self.settings.tasks}
        for start in self.starts:
            record = records.get(policy_name(start))
            if record:
                found[start.task][str(start.seed)] = dict(
                    record['results'], seconds=round(record['seconds'], 1))
        return found


def policy_name(start: Stage) -> str:
    return f'{start.task} seed {start.seed} policy'


def table(result: dict) -> str:
    """A row for each task: means over seeds, and the gain of each seed."""
    rows = [['task', 'float start', 'size', 'predicted: proposed / config',
             'calibrated: proposed / config', 'trained: proposed / config',
             'gain by seed']]
    for name, seeds in result['tasks'].items():
        if not seeds:
            continue
        task = TASKS[name]

        def mean(values, points=task.points):
            return f'{points * spread(values)["mean"]:.1f}'

        both = [[seed['policies'][policy] for seed in seeds.values()]
                for policy in POLICIES]
        gains = [task.points * (ours['trained'] - theirs['trained'])
                 for ours, theirs in zip(*both)]
        rows.append([
            f'{task.title} ({task.metric_name})',
            mean(seed['float_metric'] for seed in seeds.values()),
            f'{mean((each["size"] for each in both[1]), 100)}%',
            *(' / '.join(mean(each[key] for each in policy)
                         for policy in both)
              for key in ('predicted', 'calibrated', 'trained')),
            ', '.join(f'{gain:+.1f}' for gain in gains)])
    return markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tasks', nargs='+', choices=TASKS,
                        default=list(TASKS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=cores(),
                        help='processes side by side (default: cores)')
    for name, path, text in (
            ('work-dir', 'work_dirs/policies', 'where to write'),
            ('demo', 'work_dirs/demo', 'work dir of tools/demo.py'),
            ('data', 'data/demo', 'its datasets'),
            ('out', 'docs/results/policies.json', 'the result')):
        parser.add_argument(f'--{name}', type=Path, default=ROOT / path,
                            help=f'{text} (default: {path})')
    parser.add_argument('--quick', action='store_true', help='a few '
                        'iterations, as of the demo: does it run at all?')
    args = parser.parse_args()
    if args.quick and args.out == parser.get_default('out'):
        parser.error('--quick gives no results: name another --out')
    prepare_environment()
    study = Study(args)
    locks = [Lock(folder) for folder in (study.settings.work_dir,
                                         study.folder)]
    make_data(study.settings)
    engine = Engine(study.jobs(), args.jobs, study.settings.work_dir,
                    preload=PRELOAD)
    failed = engine.run()
    del locks
    result = dict(
        experiment='policies', config=dict(bits=RUN, seeds=args.seeds),
        environment=environment(), tasks=study.result(engine.records))
    write_json(args.out, result)
    print(table(result))
    check_failed(failed)


if __name__ == '__main__':
    try:
        main()
    except JobError as error:
        sys.exit(f'policies: {error}')
    except KeyboardInterrupt:
        sys.exit('\npolicies: interrupted; the same command goes on')
