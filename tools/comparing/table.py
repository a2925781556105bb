"""All results in one JSON file, as a table and as a plot."""
import math
from pathlib import Path
from typing import List, Optional, Tuple

from jobs.checkout import versions
from jobs.records import markdown, read_done

from gdrq_mm.analysis.drawing import new_figure, save_figure
from gdrq_mm.openmmlab.metrics import metric_name, rule_of

from .plan import START, Cell, Comparison
from .schemes import short_name


def collect(comparison: Comparison, metric: Optional[str], command: str,
            rule: Optional[str] = None) -> dict:
    """What is done of a comparison.

    Args:
        comparison (Comparison): Its cells.
        metric (str, optional): Name that the evaluator gives it; by default
            that of ``save_best``, else the usual one of the task.
        command (str): What the user typed.
        rule (str, optional): 'greater' or 'less', which is better; by default
            what mmengine knows of the metric.

    Returns:
        dict: For the JSON file.

    Raises:
        ValueError: Nothing is done, or the evaluator has no such metric.
    """
    settings = comparison.settings
    start, name, rule = start_of(comparison, metric, rule)
    cells = []
    for cell in comparison.cells:
        found = {seed: _results(comparison, cell, seed, 'train')
                 for seed in settings.seeds}
        row = dict(
            name=cell.name, scheme=cell.scheme, bits=list(cell.bits),
            seeds={str(seed): dict(metric=_metric(each, name),
                                   seconds=each['seconds'],
                                   metrics=each['metrics'])
                   for seed, each in found.items() if each})
        if cell.quantization:
            row.update(quantization=cell.quantization, hook=cell.hook,
                       policy=cell.policy,
                       weight_levels=cell.weight_levels)
            calibrated = _results(comparison, cell, settings.seeds[0],
                                  'calibrate')
            if calibrated:
                row.update(
                    {key: calibrated[key] for key in (
                        'activation_levels', 'bytes', 'float_bytes',
                        'step_ratio')},
                    calibrated=_metric(calibrated, name))
        cells.append(row)
    return dict(
        command=command, config=settings.config, metric=name, rule=rule,
        seeds=list(settings.seeds), start=start['metrics'][name],
        batches=settings.batches, cells=cells, versions=versions())


def start_of(comparison: Comparison, metric: Optional[str],
             rule: Optional[str]) -> Tuple[dict, str, str]:
    """What the evaluator says of the float model that all begin with; which
    of it is compared, and whether 'greater' or 'less' is better."""
    settings = comparison.settings
    start = _results(comparison, Cell(START), settings.seeds[0], 'test')
    if start is None:
        changed = comparison.changed(comparison.jobs()[0])
        raise ValueError(
            f'what {settings.work_dir} has is of another {", ".join(changed)}'
            if changed else f'nothing is done in {settings.work_dir}; run the '
            'same command without --collect')
    name = metric_name(start['metrics'], comparison.cfg, metric)
    try:
        return start, name, rule or rule_of(name, comparison.cfg)
    except ValueError as error:
        raise ValueError(
            f'{error}, or give --rule greater or --rule less') from None


def _results(comparison, cell, seed, kind) -> Optional[dict]:
    """Results of a job that is done with today's inputs."""
    job = comparison.job(cell, seed, kind)
    record = read_done(job.record_path, job.prepare({}).inputs,
                       comparison.settings.work_dir)
    return record and record['results']


def _metric(results: dict, name: str) -> float:
    """NaN where a detector finds nothing: COCO's evaluator then says so."""
    return results['metrics'].get(name, math.nan)


def spread(values: List[float], digits: int, seeds: int) -> str:
    """'91.24', or '91.50 (91.00 to 92.00)' over several seeds, or '91.24, 1
    of 3 seeds' of fewer than were asked for; 'none' of no number."""
    if not values:
        return 'not run'
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return 'none'
    text = f'{sum(values) / len(values):.{digits}f}'
    if len(values) > 1:
        text += f' ({min(values):.{digits}f} to {max(values):.{digits}f})'
    return text if len(values) == seeds else \
        f'{text}, {len(values)} of {seeds} seeds'


def drops_of(row: dict, rows: List[dict], rule: str) -> List[float]:
    """How much worse than float, of the seeds that both have."""
    reference, sign = rows[0]['seeds'], 1 if rule == 'greater' else -1
    return [sign * (reference[seed]['metric'] - found['metric'])
            for seed, found in row['seeds'].items() if seed in reference]


def table(result: dict) -> str:
    """Markdown: one row per cell, then what first and last layers have."""
    rows, number = result['cells'], len(result['seeds'])
    digits = 4 if result['start'] <= 1 else 2
    lines = [['[w,a] bits', 'scheme', 'levels of weights / activations',
              f'{result["metric"]}, fine-tuned', 'drop', 'calibrated only',
              'step time / float', 'file, kB']]
    for row in rows:
        seeds = [each['metric'] for each in row['seeds'].values()]
        line = [str(row['bits']) if row['bits'] else '', row['scheme'],
                'float', spread(seeds, digits, number), '', '', '', '']
        if row['bits']:
            # Signed inputs may have fewer; calibration tells.
            line[2] = f'{row["weight_levels"]} / ' + ' and '.join(
                row.get('activation_levels', [f'up to {2**row["bits"][1]}']))
            drops = drops_of(row, rows, result['rule'])
            line[4] = spread(drops, digits, number) if drops else ''
            line[5] = spread([row['calibrated']] if 'calibrated' in row
                             else [], digits, 1)
            if 'step_ratio' in row:
                line[6] = f'{row["step_ratio"]:.2f}'
                line[7] = f'{row["bytes"] / 1e3:.0f}'
        else:
            line[7] = next((f'{each["float_bytes"] / 1e3:.0f}'
                            for each in rows if 'float_bytes' in each), '')
        lines.append(line)
    return f'{markdown(lines)}\n\n{caption(result)}'


def caption(result: dict) -> str:
    seeds = ', '.join(map(str, result['seeds']))
    policies = '; '.join(dict.fromkeys(
        part for row in result['cells'] if row['bits']
        for part in row['policy'].partition('; ')[2].split('; ') if part))
    found = result['versions']
    return (
        f'{result["metric"]} of the float model that all begin with: '
        f'{result["start"]:.4g}. Fine-tuned by one schedule, seeds {seeds}'
        + ('' if len(result['seeds']) == 1 else ': mean (least to largest)')
        + f'; {result["rule"]} is better; drop: how much worse than float, '
        'fine-tuned alike. Calibrated: at most '
        f'{result["batches"]} batches, no training. Other bits than in the '
        f'first column, [weights,activations]: {policies or "none"}. '
        f'gdrq_mm {found["gdrq_mm"]}, torch {found["torch"]}.')


def plot(result: dict, path: Path) -> None:
    """The metric of every scheme over the bits, float as a line."""
    rows = result['cells']
    pairs = list(dict.fromkeys(tuple(row['bits']) for row in rows
                               if row['bits']))
    figure = new_figure(1.6 * len(pairs) + 3, 3.4)
    axes = figure.subplots()
    float_values = [each['metric'] for each in rows[0]['seeds'].values()]
    if float_values:
        axes.axhline(sum(float_values) / len(float_values), color='.5',
                     linestyle='--', label='float, fine-tuned alike')
    schemes = list(dict.fromkeys(row['scheme'] for row in rows[1:]))
    for number, scheme in enumerate(schemes):
        shift = .5 * ((number + .5) / len(schemes) - .5)
        for row in rows[1:]:
            values = [each['metric'] for each in row['seeds'].values()
                      if not math.isnan(each['metric'])]
            if row['scheme'] != scheme or not values:
                continue
            mean = sum(values) / len(values)
            axes.errorbar(
                pairs.index(tuple(row['bits'])) + shift, mean,
                [[mean - min(values)], [max(values) - mean]], fmt='o',
                capsize=3, color=f'C{number}', label=short_name(scheme))
    axes.set_xticks(range(len(pairs)), [str(list(pair)) for pair in pairs])
    axes.set_xlabel('bits of weights and activations')
    axes.set_ylabel(result['metric'])
    handles = dict(zip(*reversed(axes.get_legend_handles_labels())))
    axes.legend(handles.values(), handles.keys(), fontsize='small')
    save_figure(figure, path)
