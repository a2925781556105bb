"""All results in one JSON file, and as a table."""
import os
import sys

from jobs.checkout import versions
from jobs.records import markdown

from gdrq_mm.plan import percent

from .tasks import FLOAT, LABELS, QUANTIZED, QUICK_NOTE, START, TASKS


def summarize(settings, stages, records):
    """Collect the results of all stages.

    Args:
        settings (Settings): What was asked for.
        stages (list[Stage]): All stages.
        records (dict[str, dict]): Name of a stage -> its finished record.

    Returns:
        dict: For ``summary.json``.
    """
    by_key = {(s.task, s.seed, s.run, s.kind): records[s.name]
              for s in stages}
    tasks = {}
    for task in settings.tasks:
        first = settings.seeds[0]
        look = by_key[task, first, 'all', 'look']['results']
        per_seed = {str(seed): {
            run: seed_results(by_key, task, seed, run)
            for run in settings.runs}
            for seed in settings.seeds}
        runs = {}
        for run in settings.runs:
            runs[run] = dict(look['runs'].get(run, {}))
            if run in QUANTIZED:
                published = by_key[task, first, run, 'publish']['results']
                runs[run].update(
                    published=published['checkpoint'],
                    bytes=published['bytes'],
                    drop=spread(seed[run]['drop']
                                for seed in per_seed.values()))
            runs[run]['metric'] = spread(
                seed[run]['metric'] for seed in per_seed.values())
        tasks[task] = dict(
            title=TASKS[task].title, metric_name=TASKS[task].metric_name,
            configs=TASKS[task].configs,
            images=by_key[task, first, START, 'train']['inputs']['data'][
                'counts'],
            device=look['device'], runs=runs, per_seed=per_seed)
    return dict(
        are_results=not settings.quick,
        note=QUICK_NOTE if settings.quick else '',
        command=f'python {" ".join(sys.argv)}', seeds=settings.seeds,
        quantized=settings.quantized,
        seconds=round(sum(record['seconds'] for record in records.values())),
        versions=versions(), cpu_count=os.cpu_count(), tasks=tasks)


def seed_results(by_key, task, seed, run):
    """Metric, drop and times of one run."""
    test = by_key[task, seed, run, 'test']
    train = by_key[task, seed, run, 'train']
    results = dict(metric=test['results']['metric'],
                   train_seconds=round(train['seconds'], 1),
                   test_seconds=round(test['seconds'], 1),
                   interruptions=train['interruptions'])
    if run in QUANTIZED:
        reference = by_key[task, seed, FLOAT, 'test']['results']['metric']
        results['drop'] = reference - results['metric']
    return results


def spread(values):
    values = list(values)
    return dict(mean=sum(values) / len(values), min=min(values),
                max=max(values))


def table(summary):
    """The table of the results, in Markdown.

    Args:
        summary (dict): As :func:`summarize` gives it.

    Returns:
        str: Lines of the table, then what it was measured with.
    """
    quantized = summary['quantized']
    header = ['task', 'metric', LABELS[START], LABELS[FLOAT]]
    for run in quantized:
        header += [LABELS[run], 'drop']
    header += ['quantized weights / MACs', 'file: ' + ' / '.join(
        LABELS[run] for run in [FLOAT, *quantized])]
    rows = []
    for task in summary['tasks'].values():
        runs = task['runs']
        row = [task['title'], task['metric_name'],
               cell(runs[START]['metric']), cell(runs[FLOAT]['metric'])]
        for run in quantized:
            row += [cell(runs[run]['metric']), cell(runs[run]['drop'])]
        row.append('; '.join(dict.fromkeys(
            shares(runs[run]) for run in quantized)))
        row.append(' / '.join(f'{runs[run]["bytes"] / 1e3:.0f}'
                              for run in [FLOAT, *quantized]) + ' kB')
        rows.append(row)
    return f'{markdown([header, *rows])}\n\n{caption(summary)}'


def shares(run):
    """'100.0% / 100.0% (8 bit: 0.9% / 13.0%)': first and last layers often
    have more bits than the rest."""
    text = f'{percent(run["weight_share"])} / {percent(run["mac_share"])}'
    weights, macs = run['weight_share_by_bits'], run['mac_share_by_bits']
    if '8' not in weights:
        return text
    return f'{text} (8 bit: {weights["8"]:.1%} / {macs["8"]:.1%})'


def cell(values):
    """'91.2', or '91.2 (90.8 to 91.5)' over several seeds."""
    text = f'{values["mean"]:.1f}'
    low, high = (f'{values[key]:.1f}' for key in ('min', 'max'))
    return text if values['min'] == values['max'] else \
        f'{text} ({low} to {high})'


def caption(summary):
    seeds = summary['seeds']
    named = ', '.join(str(seed) for seed in seeds)
    how = f'Seed {named}.' if len(seeds) == 1 else \
        f'Mean (least to largest) of seeds {named}.'
    found = summary['versions']
    text = (f'{how} All go on from the float model "start", by the same '
            'schedule; drop: float minus quantized, in points. '
            f'torch {found["torch"]}, gdrq_mm {found["gdrq_mm"]}, '
            f'{summary["cpu_count"]} CPU cores, '
            f'stages of {summary["seconds"] / 60:.0f} minutes in all.')
    return f'**{summary["note"]}**\n\n{text}' if summary['note'] else text
