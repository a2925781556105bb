"""What the experiments share: where results lie and what they must say."""
import argparse
import json
import os
import platform
from pathlib import Path

import numpy as np
import torch

import gdrq_mm

ROOT = Path(__file__).resolve().parents[2]


def parse(doc: str, name: str) -> argparse.ArgumentParser:
    """Parser with what all experiments take.

    Args:
        doc (str): Docstring of the experiment.
        name (str): Stem of its result and of its image.
    """
    parser = argparse.ArgumentParser(
        description=doc.split('\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--out', type=Path,
                        default=ROOT / 'docs' / 'results' / f'{name}.json')
    parser.add_argument('--image', type=Path,
                        default=ROOT / 'docs' / 'images' / f'{name}.png')
    parser.add_argument('--draw', action='store_true',
                        help='only draw the image, from the result that is '
                        'there')
    return parser


def environment() -> dict:
    """Versions and device, to stand in every result."""
    return dict(
        gdrq_mm=gdrq_mm.__version__, torch=torch.__version__,
        numpy=np.__version__, python=platform.python_version(),
        device='CPU', threads=torch.get_num_threads())


def write_json(path: Path, result: dict) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.partial')
    partial.write_text(json.dumps(result, indent=1) + '\n')
    os.replace(partial, path)


def new_figure(rows: int, columns: int, width: float = 3.2,
               height: float = 2.4, **kwargs):
    """A figure and its axes, an array of ``rows`` by ``columns``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width * columns, height * rows),
                    layout='constrained')
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def write_image(path: Path, figure) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.stem}.partial{path.suffix}')
    figure.savefig(partial, dpi=110)
    os.replace(partial, path)


def spread(values) -> dict:
    """Mean and range of the results of several seeds."""
    values = [float(value) for value in values]
    return dict(mean=sum(values) / len(values), min=min(values),
                max=max(values), values=values)
