"""What the experiments share: where results lie and what they must say."""
import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch

import gdrq_mm
from gdrq_mm.analysis.drawing import new_figure
from gdrq_mm.writing import write_whole

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
    with write_whole(path, overwrite=True) as part:
        part.write_text(json.dumps(result, indent=1) + '\n')


def new_axes(rows: int, columns: int, width: float = 3.2,
             height: float = 2.4, **kwargs):
    """A figure and its axes, an array of ``rows`` by ``columns``."""
    figure = new_figure(width * columns, height * rows)
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def spread(values) -> dict:
    """Mean and range of the results of several seeds."""
    values = [float(value) for value in values]
    return dict(mean=sum(values) / len(values), min=min(values),
                max=max(values), values=values)
