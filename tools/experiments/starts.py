"""Float models of model_zoo/, which quantized ones begin with.

Training them takes an hour, which whoever fine-tunes need not repeat.
"""
from pathlib import Path
from typing import Dict, Optional, Tuple

import torch
from jobs.checkout import ROOT
from jobs.records import file_hash, read_json

from .cells import Cell

STARTS = ROOT / 'model_zoo' / 'starts.json'


def published_starts(path: Path = STARTS) -> Dict[str, dict]:
    """Cell -> what is written down of its published model, with its
    ``checkpoint``.

    Args:
        path (Path): The list; files lie beside it.
    """
    return {name: dict(entry, checkpoint=str(path.parent / entry['file']))
            for name, entry in (read_json(path) or {}).items()}


def take_over(cell: Cell, seed: int, entry: Optional[dict], inputs: dict
              ) -> Optional[Tuple[dict, dict]]:
    """The published model of a cell, as if it had been trained here.

    Args:
        cell (Cell): The cell.
        seed (int): Seed of the training.
        entry (dict, optional): Its entry in :func:`published_starts`.
        inputs (dict): What the result of the cell depends on, now. Data that
            are not there are no obstacle: they are not needed.

    Returns:
        tuple[dict, dict]: The result, and the versions that gave it; None
        where nothing is published of this config, seed and these data.
    """
    if entry is None or (seed, inputs['config']) != (
            entry['seed'], entry['config_hash']) or inputs['data'] not in (
                None, entry['stamp']):
        return None
    path = Path(entry['checkpoint'])
    if not path.exists() or file_hash(path) != entry['hash']:
        return None
    return {key: entry[key] for key in (
        'metric', 'by', 'threads', 'commit', 'date', 'seconds',
        'checkpoint')}, entry['versions']


def write_start(checkpoint: Path, out: Path) -> None:
    """Write a float model as it is published: weights in float16, which
    loading casts back, the rest (biases, batch normalization) as it is.

    Args:
        checkpoint (Path): Training checkpoint of mmengine.
        out (Path): The file.
    """
    content = torch.load(checkpoint, map_location='cpu', weights_only=True)
    torch.save(dict(
        meta=dict(dataset_meta=content['meta'].get('dataset_meta')),
        state_dict={name: value.half() if value.dim() > 1 else value
                    for name, value in content['state_dict'].items()}), out)
