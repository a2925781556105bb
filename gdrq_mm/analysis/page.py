"""One self-contained page about a quantized model."""
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Union

from ..writing import write_whole
from .layer_figures import LIMIT, LayerFigures
from .sensitivity import Figures, Setting, worst_first
from .tables import SIDE_WORDS, bits_text, number_text

TEMPLATE = Path(__file__).with_name('page.html')


@dataclass
class Page:
    """What stands on the page.

    Args:
        title (str): Its heading.
        summary (str): One paragraph.
        rows (list[dict]): Rows of the plan, see
            :meth:`gdrq_mm.plan.QuantReport.rows`.
        figures (dict[str, LayerFigures]): By layer.
        trouble (list[str]): A line each.
        sections (list[dict]): ``title``, ``text`` and ``plots`` of plotly in
            primitive types.
    """
    title: str
    summary: str
    rows: List[dict]
    figures: Dict[str, LayerFigures]
    trouble: List[str] = field(default_factory=list)
    sections: List[dict] = field(default_factory=list)

    def html(self) -> str:
        """The page, with all that it needs: it opens without a network.

        Raises:
            ImportError: plotly is missing.
        """
        try:
            from plotly.offline import get_plotlyjs
        except ImportError as error:
            raise ImportError('plotly is missing, which draws the page: pip '
                              'install "gdrq_mm[analysis]"') from error
        data = json.dumps(_finite(dict(
            title=self.title, summary=self.summary, rows=self.rows,
            figures={name: each.to_dict()
                     for name, each in self.figures.items()},
            trouble=self.trouble, sections=self.sections, limit=LIMIT)),
            allow_nan=False)
        page = TEMPLATE.read_text(encoding='utf-8')
        # No text of ours may end a script.
        for mark, text in (('/*PLOTLY*/', get_plotlyjs()),
                           ('/*DATA*/', data.replace('</', '<\\/'))):
            page = page.replace(mark, text, 1)
        return page

    def write(self, path: Union[str, Path]) -> None:
        """Write it whole or not at all.

        Raises:
            FileExistsError: There is a file of that name.
        """
        page = self.html()
        with write_whole(path) as part:
            part.write_text(page, encoding='utf-8')


def _finite(value):
    """The same with null for numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) \
        else value


def _layout(title: str, x: str, y: str, **more) -> dict:
    return dict(title=dict(text=title, font=dict(size=13)),
                xaxis=dict(title=dict(text=x)),
                yaxis=dict(title=dict(text=y), automargin=True), **more)


def sensitivity_section(figures: Dict[Setting, Figures]) -> dict:
    """Bars of what was measured alone, the worst on top."""
    parts: Dict[tuple, Dict[Setting, Figures]] = {}
    for setting, found in figures.items():
        if setting.way == 'alone' and setting.group:
            parts.setdefault(setting[1:3], {})[setting] = found
    plots = []
    for (side, bits), part in sorted(parts.items()):
        order = worst_first(part)[::-1]
        plots.append(dict(
            data=[dict(type='bar', orientation='h',
                       y=[each.group for each in order],
                       x=[100 * part[each].noise for each in order],
                       text=[number_text(part[each].metric) for each in order],
                       hovertemplate='%{y}: noise %{x:.3g}%, metric '
                       '%{text}<extra></extra>')],
            layout=_layout(
                f'{SIDE_WORDS[side]} at {bits_text(bits)}, one at a time',
                'noise of outputs, % of signal', '',
                height=120 + 18 * len(order))))
    return dict(title='Sensitivity', plots=plots)


def curves_section(scalars: List[dict]) -> dict:
    """Curves of the ``gdrq_*`` scalars of a run.

    Args:
        scalars (list[dict]): Lines of ``vis_data/scalars.json``.
    """
    names = sorted({name for line in scalars for name in line
                    if name.startswith('gdrq_')})
    plots = []
    for name in ['loss', *names]:
        points = [(line.get('step', index), line[name])
                  for index, line in enumerate(scalars) if name in line]
        if points:
            x, y = zip(*points)
            plots.append(dict(
                data=[dict(type='scatter', mode='lines', x=x, y=y)],
                layout=_layout(name, 'step', '', height=260)))
    return dict(title='Training', plots=plots)
