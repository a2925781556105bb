"""Figures as lines to read."""
import math
from typing import Dict, Iterable, List, Optional, Sequence

from .coverage import Coverage
from .diff import PARTED, Difference, first_parted, largest
from .policy import format_rules
from .sensitivity import Figures, Setting, worst_first


def format_table(rows: Iterable[Sequence], head: Sequence[str]) -> str:
    """Columns in line; the first is left-aligned, the others right."""
    rows = [[str(value) for value in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ['-' * width for width in widths])
    return '\n'.join('  '.join(
        value.rjust(width) if index else value.ljust(width)
        for index, (value, width) in enumerate(zip(row, widths))).rstrip()
        for row in rows)


def noise_text(figures: Figures) -> str:
    """Noise and its standard error, in percent of the signal."""
    if math.isnan(figures.error):
        return f'{figures.noise:.2%}'
    return f'{figures.noise:.2%} +- {figures.error:.2%}'


def number_text(value: float, form: str = '{:.4g}') -> str:
    """'none' where an evaluator gave no number."""
    return 'none' if math.isnan(value) else form.format(value)


def bits_text(bits: int) -> str:
    """0 stands for those of a training."""
    return f'{bits} bits' if bits else 'the trained bits'


WAY_TITLES = dict(alone='{} at {}, the rest float: the worst first',
                  rest='all at {1}, {0} float: what wins most first')
SIDE_WORDS = dict(both='weights and inputs', weight='weights',
                  activation='inputs')


def sensitivity_tables(figures: Dict[Setting, Figures], metric: str,
                       float_metric: float, most: Optional[int] = None
                       ) -> str:
    """One table for each way, side and number of bits.

    Args:
        figures (dict[Setting, Figures]): What was measured.
        metric (str): Its name.
        float_metric (float): Metric of the float model.
        most (int, optional): Rows of each table. Defaults to None: all.
    """
    parts: Dict[tuple, Dict[Setting, Figures]] = {}
    for setting, found in figures.items():
        if setting.group:
            parts.setdefault(setting[1:], {})[setting] = found
    texts: List[str] = []
    for (side, bits, way, _), part in parts.items():
        title = WAY_TITLES[way].format(
            f'one at a time, {SIDE_WORDS[side]}', bits_text(bits))
        whole = figures.get(Setting('', 'both', bits, 'rest'))
        if way == 'rest' and whole:
            title += (f'\n(nothing float: {metric} '
                      f'{number_text(whole.metric)}, noise '
                      f'{noise_text(whole)})')
        order = worst_first(part)[:most]
        rows = [(setting.group, number_text(part[setting].metric),
                 number_text(part[setting].metric - float_metric, '{:+.4g}'),
                 noise_text(part[setting])) for setting in order]
        texts.append(f'{title}\n' + format_table(
            rows, ('what', metric, 'against float', 'noise of outputs')))
    return '\n\n'.join(texts)


def diff_table(differences: List[Difference], below: float = PARTED) -> str:
    """Signal-to-noise ratios in the order of calls, and where models part.

    Args:
        differences (list[Difference]): In that order.
        below (float): Decibels below which a module parts. Defaults to 60.
    """
    rows = [(each.name, f'{each.own.decibels:.1f}',
             f'{each.whole.decibels:.1f}') for each in differences]
    table = format_table(rows, ('module', 'own dB', 'up to here dB'))
    first = first_parted(differences, below)
    if first is None:
        return f'{table}\nno module differs by itself (below {below:g} dB)'
    worst = largest(differences)
    return (f'{table}\nthey part first at {first.name} '
            f'({first.own.decibels:.1f} dB); the most noise comes from '
            f'{worst.name} ({worst.own.decibels:.1f} dB)')


def coverage_table(coverage: Coverage, all_rows: bool = False) -> str:
    """What is not low-bit, the most first, and a summary.

    Args:
        coverage (Coverage): What was seen.
        all_rows (bool): List what is low-bit as well. Defaults to False.
    """
    rows = [row for row in coverage.rows
            if all_rows or row.low_bit < row.macs]
    rows.sort(key=lambda row: row.low_bit - row.macs)
    lines = [(row.module or '(the model itself)', row.operand, row.calls,
              f'{row.macs / 1e6:.4g}', f'{row.macs / coverage.macs:.2%}',
              f'{row.low_bit / max(row.macs, 1):.0%}') for row in rows]
    table = format_table(lines, ('module', 'with', 'calls', 'million MACs',
                                 'of all', 'low-bit'))
    return f'{table}\n{coverage.summary()}' if lines else coverage.summary()


def policy_table(proposal) -> str:
    """The proposed policy beside the config's own, and the rules to paste.

    Args:
        proposal: A :class:`gdrq_mm.openmmlab.policy.Proposal`.
    """
    def written(value):
        return 'not measured' if value is None else number_text(value)

    name = proposal.metric_name
    rows = [(each.name, f'{each.size:.2%}', f'{each.bops:.3%}',
             f'{each.noise:.1%}', number_text(each.metric),
             written(each.calibrated and each.calibrated.metric),
             written(each.trained)) for each in proposal.policies]
    table = format_table(rows, (
        'policy', 'size', 'bit operations', 'noise, predicted',
        f'{name}, predicted', 'after calibration', 'after training'))
    kept = [each for layer in proposal.layers if layer.kept
            for each in layer.names]
    more = ('\na prediction does not call these, which keep their bits: '
            f'{", ".join(kept)}' if kept else '')
    return (f'float: {name} {proposal.float_metric:.4g}; size and bit '
            f'operations relative to it\n{table}{more}\n'
            f'{format_rules(proposal.rules)}')
