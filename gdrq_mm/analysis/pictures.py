"""One picture of each analysis."""
from collections import Counter
from typing import Dict, List

from ..plan import percent
from .coverage import Coverage
from .diff import Difference
from .drawing import Target, new_figure, save_figure
from .rules import LAYER_SIDES
from .sensitivity import Figures, Setting, worst_first
from .tables import SIDE_WORDS, bits_text


def plot_sensitivity(figures: Dict[Setting, Figures], path: Target,
                     most: int = 20) -> None:
    """Bars of noise, the worst layers on top; a column for each table.

    Args:
        figures (dict[Setting, Figures]): What was measured.
        path (str or os.PathLike): Image to write.
        most (int): Layers a column. Defaults to 20.
    """
    parts: Dict[tuple, Dict[Setting, Figures]] = {}
    for setting, found in figures.items():
        if setting.group and setting.way == 'alone':
            parts.setdefault(setting[1:3], {})[setting] = found
    if not parts:
        raise ValueError("nothing was measured alone: the picture shows "
                         "--ways alone")
    rows = min(most, max(map(len, parts.values())))
    image = new_figure(5.2 * len(parts), .24 * rows + 1.2)
    axes = image.subplots(1, len(parts), squeeze=False)[0]
    for axis, ((side, bits), part) in zip(axes, parts.items()):
        order = worst_first(part)[:most]
        axis.barh([each.group for each in order],
                  [100 * part[each].noise for each in order],
                  xerr=[100 * part[each].error for each in order],
                  color='tab:blue', ecolor='tab:gray')
        axis.invert_yaxis()
        axis.tick_params(axis='y', labelsize='small')
        axis.set_xlim(left=0)
        axis.set_xlabel('noise of outputs, % of signal')
        axis.set_title(f'{SIDE_WORDS[side]} at {bits_text(bits)}',
                       fontsize='medium')
    save_figure(image, path)


def plot_policy(proposal, path: Target) -> None:
    """Bits of weights by layer, proposed and the config's own.

    Args:
        proposal: A :class:`gdrq_mm.openmmlab.policy.Proposal`.
        path (str or os.PathLike): Image to write.
    """
    names = list(proposal.policies[0].choice)
    image = new_figure(max(6, .28 * len(names)), 4.2)
    axes = image.subplots(2, 1, sharex=True)
    for axis, side in zip(axes, LAYER_SIDES):
        for policy, color, width in zip(proposal.policies, (
                'tab:blue', 'tab:gray'), (.8, .3)):
            axis.bar(names, [getattr(policy.choice[name], side)
                             for name in names], width, color=color,
                     label=policy.name)
        axis.set_ylabel(f'bits of {SIDE_WORDS[side]}')
    axes[0].legend(fontsize='small')
    axes[1].tick_params(axis='x', rotation=90, labelsize='small')
    save_figure(image, path)


def plot_coverage(coverage: Coverage, path: Target, most: int = 20) -> None:
    """Bars of multiply-accumulates, low-bit ones and others, by module.

    Args:
        coverage (Coverage): What was seen.
        path (str or os.PathLike): Image to write.
        most (int): Modules with the most. Defaults to 20.
    """
    rows = sorted(coverage.rows, key=lambda row: -row.macs)[:most]
    often = Counter(row.module for row in rows)
    names = [row.module if row.module and often[row.module] == 1
             and row.operand != 'activations' else
             f'{row.module or "(the model itself)"}, {row.operand}'
             for row in rows]  # of one name there is one bar
    image = new_figure(7, .24 * len(rows) + 1.2)
    axis = image.subplots()
    low = [row.low_bit / 1e6 for row in rows]
    axis.barh(names, low, color='tab:blue', label='low-bit operands')
    axis.barh(names, [row.macs / 1e6 - each for row, each in zip(rows, low)],
              left=low, color='tab:orange', label='a float operand')
    axis.invert_yaxis()
    axis.tick_params(axis='y', labelsize='small')
    axis.set_xlabel('million multiply-accumulates')
    axis.set_title(f'{percent(coverage.share)} of the MACs with weights see '
                   'low-bit operands',
                   fontsize='medium')
    axis.legend(fontsize='small')
    save_figure(image, path)


def plot_diff(differences: List[Difference], path: Target) -> None:
    """Signal-to-noise ratios in the order of calls.

    Args:
        differences (list[Difference]): In that order.
        path (str or os.PathLike): Image to write.
    """
    names = [each.name for each in differences]
    image = new_figure(max(6, .18 * len(names)), 4.5)
    axis = image.subplots()
    for kind, label in (('own', 'of its own'), ('whole', 'up to here')):
        values = [getattr(each, kind).decibels for each in differences]
        axis.plot(names, [max(min(value, 120.), -120.)
                          for value in values], '.-', label=label)
    axis.set_ylabel('signal-to-noise ratio, dB (120: equal, '
                    '-120: not finite)')
    axis.tick_params(axis='x', rotation=90, labelsize='small')
    axis.legend(fontsize='small')
    save_figure(image, path)
