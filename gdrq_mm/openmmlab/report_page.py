"""The page of a config and its trained checkpoint."""
import json
from pathlib import Path
from typing import Dict, List, Optional

from ..analysis.layer_figures import (
    LATE,
    TO_REST,
    find_trouble,
    has_moved,
    measure_layers,
)
from ..analysis.measurements import Measurements
from ..analysis.page import Page, curves_section, sensitivity_section
from ..analysis.sensitivity import Figures, Setting, group_layers
from ..plan import QuantReport
from ..training import get_state
from ..writing import check_new
from .bench import Bench


def write_report(config: str, checkpoint: str, out: str, batches: int = 2,
                 measured: Optional[str] = None,
                 cfg_options: Optional[dict] = None) -> Page:
    """Write the page of a trained model.

    Args:
        config (str): Config of the quantized model.
        checkpoint (str): Trained with it. Training curves are those of the
            run in whose folder it lies.
        out (str): The page; must not exist.
        batches (int): Number of batches of the validation data. Defaults to 2.
        measured (str, optional): File of measured sensitivities.
        cfg_options (dict, optional): Changes of the config.

    Raises:
        ValueError: The checkpoint is a float one, or the sensitivities are of
            another model, or as :class:`Bench` has it.
        FileExistsError: ``out`` is there.
    """
    check_new(out)
    bench = Bench(config, checkpoint, batches, cfg_options=cfg_options)
    if not bench.is_trained:
        raise ValueError(
            f'{checkpoint} holds a float model, of which there is nothing to '
            'report; give a quantized one, or make one with '
            'gdrq calibrate')
    bench.need_latent_weights()
    model = bench.model
    report = QuantReport(get_state(model).plans)
    found = read_settings(measured, [
        plan.name for plan in report.layers]) if measured else {}
    figures = measure_layers(model, bench.forwards(model))
    sections, trouble = [], find_trouble(figures.values())
    if found:
        sections.append(sensitivity_section(found))
    scalars = run_scalars(checkpoint)
    if scalars:
        sections.append(curves_section(scalars))
        trouble += moving(scalars)
    page = Page(f'{Path(config).stem}: {Path(checkpoint).name}',
                f'{report.summary()}. {report.policy()}', report.rows(),
                figures, trouble, sections)
    page.write(out)
    return page


def read_settings(path: str, layers: List[str]
                  ) -> Dict[Setting, Figures]:
    """What a file of measurements says of the layers of a model.

    Args:
        path (str): The file.
        layers (list[str]): Names of all layers of the model.

    Raises:
        ValueError: There is no such file, or it is another one, or of a
            model with other layers.
    """
    if not Path(path).exists():
        raise ValueError(f'there is no file {path}; give one that '
                         '"gdrq analyze sensitivity --json" has written')
    kept = Measurements(path)
    found = {}
    for key, value in kept.items():
        setting = Setting.from_key(key)
        if setting is not None:
            found[setting] = Figures(**value)
    groups = {by: {'', *group_layers(layers, by)} for by in
              ('layer', 'stage')}
    for setting in found:
        if setting.group not in groups[setting.by]:
            raise ValueError(
                f'{path} was measured of another model: this one has no '
                f'{setting.by} {setting.group!r}; measure it with "gdrq '
                'analyze sensitivity", or leave out --json')
    return found


def run_scalars(checkpoint: str) -> List[dict]:
    """The scalars of the last training in a checkpoint's folder, which may
    have been resumed: each time mmengine begins another file."""
    found: List[dict] = []
    for path in sorted(Path(checkpoint).parent.glob(
            '*/vis_data/scalars.json')):
        lines = _scalars_of(path)
        begin = next((line['iter'] for line in lines if 'iter' in line), None)
        if begin is None:  # a test
            continue
        # What was trained again, or all, where it began anew.
        end = next((number for number, line in enumerate(found)
                    if line.get('iter', 0) >= begin), len(found))
        found = found[:end] + lines
    return found


def _scalars_of(path: Path) -> List[dict]:
    text = path.read_text(encoding='utf-8')
    lines = [line for line in text.splitlines() if line.strip()]
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ValueError(
                    f'{path} has no JSON in line {number}; remove the line, '
                    'or the file to do without curves') from None
            # A run that was killed, or that goes on, is not done with it.
    return found


def moving(scalars: List[dict]) -> List[str]:
    """A line where thresholds moved in the last part of a run."""
    values = [line['gdrq_act_clip'] for line in scalars
              if 'gdrq_act_clip' in line]
    if len(values) < 5:
        return []
    late = values[int(LATE * len(values))]
    return [f'activation thresholds moved by {values[-1] / late - 1:+.0%} in '
            f'the last {1 - LATE:.0%} of the run. {TO_REST}'] \
        if has_moved(late, values[-1]) else []
