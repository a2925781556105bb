"""Compare an exported file with the package's own test, image by image.

The whole test set goes through both: the model as the package tests it, one
image at a time, and the file in ONNX Runtime. Without --file it is the float
export of a float model, which is not kept.

examples:
  gdrq compare-export my_float.py work_dirs/my_float/epoch_2.pth
  gdrq compare-export my_w4a4.py epoch_2.pth --file epoch_2.pth.qdq.onnx
"""
import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, Callable, Optional, Sequence, Tuple

import torch
from mmengine.config import Config

from gdrq_mm.analysis.diff_onnx import runs_optimised
from gdrq_mm.cli import run_tool
from gdrq_mm.deployable import first_images, load_model, make_deployable
from gdrq_mm.layers import QuantLayer
from gdrq_mm.openmmlab.deployable.evaluation import tensors_of
from gdrq_mm.openmmlab.deployable.images import (
    as_input,
    default_size,
    pad_image,
)
from gdrq_mm.openmmlab.deployable.own_test import compare_with_own_test
from gdrq_mm.openmmlab.publish import load_all
from gdrq_mm.openmmlab.reading import read_checkpoint, weights_of
from gdrq_mm.openmmlab.scopes import (
    ConfigOptions,
    build_model,
    read_config,
)
from gdrq_mm.writing import write_whole


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of the training, or as published')
    parser.add_argument('checkpoint', help='of the training, or as published')
    parser.add_argument('--file', help='what "gdrq export" wrote, a qdq or '
                        'tensorrt file; default: the float export')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'),
                        help='size of images of the float export; default: '
                        'what all fit in')
    parser.add_argument('--json', help='write all figures there as well')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions,
                        help='those of the training')
    return parser.parse_args()


@torch.no_grad()
def compare(args: argparse.Namespace) -> dict:
    """Compare, print, return the figures."""
    if args.json and Path(args.json).exists():
        raise FileExistsError(f'{args.json} exists; remove it or give '
                              'another name')
    if args.file and args.shape:
        raise ValueError('--shape is of the float export; leave it out, '
                         '--file has a size of its own')
    if args.file:
        cfg, model = load_model(args.config, args.checkpoint,
                                args.cfg_options)
        form = make_deployable(model).eval()
        function, size = open_file(Path(args.file), form.output_names)
        image, = test_images(cfg, 1, size)
        need_same_shapes(args.file, function(image), form(image))
    else:
        cfg, model = load_float(args)
        size = tuple(args.shape or default_size(cfg, test_images(cfg, 32)))
        function = float_export(cfg, model, size)
    print('images: ' + ('any size' if size is None else
                        f'{size[0]} x {size[1]}'))
    result = compare_with_own_test(cfg, model, function, size)
    print(result)
    figures = dict(vars(result), arguments=vars(args))
    if args.json:
        with write_whole(args.json) as part:
            part.write_text(json.dumps(figures, indent=1) + '\n')
    return figures


def test_images(cfg: Config, number: int,
                size: Optional[Tuple[int, int]] = None) -> list:
    """The first images of the test set."""
    try:
        return first_images(cfg, number, 'test', size)
    except OSError as error:
        raise OSError(
            f'the test set cannot be read ({error}): say where it is with '
            '--cfg-options test_dataloader.dataset.data_root=DIR') from error


def load_float(args: argparse.Namespace) -> tuple:
    """The float model of a config, in eval mode."""
    cfg = read_config(args.config, args.cfg_options)
    model = build_model(cfg)
    if any(isinstance(layer, QuantLayer) for layer in model.modules()):
        raise ValueError(f'the model of {args.config} is quantized: give what '
                         '"gdrq export" wrote of it with --file')
    load_all(model, weights_of(read_checkpoint(args.checkpoint)))
    model.eval()  # returns nothing in some models
    return cfg, model


def float_export(cfg: Config, model: torch.nn.Module, size: Tuple[int, int]
                 ) -> Callable:
    """A float model as an ONNX file, in ONNX Runtime."""
    from gdrq_mm.export.onnx_check import run, session
    from gdrq_mm.export.speed import export_float
    image, = test_images(cfg, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'float.onnx'
        export_float(make_deployable(model).eval(),
                     pad_image(cfg, image, size), path)
        runner = session(path)
    return lambda image: run(runner, [image])


def open_file(path: Path, names: Sequence[str]
              ) -> Tuple[Callable, Optional[Tuple[int, int]]]:
    """A file in ONNX Runtime, and the size of its images; None: any.

    Args:
        path (Path): The file.
        names (sequence of str): Outputs of the model with post-processing.

    Returns:
        tuple: Function image -> outputs, and height and width.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: ONNX Runtime does not open it, or it has other outputs.
    """
    from gdrq_mm.export.onnx_check import run, session
    if not path.is_file():
        raise FileNotFoundError(f'--file is {path}, which is not there; give '
                                'a file that "gdrq export" wrote')
    try:
        runner = session(path, optimise=runs_optimised(path))
    except Exception as error:  # of classes that have no other base
        said = str(error).strip().partition('\n')[0]
        raise ValueError(
            f'{path} is no file that ONNX Runtime opens ({said}): give one '
            'that "gdrq export" wrote with --target qdq or tensorrt'
        ) from error
    found = [each.name for each in runner.get_outputs()]
    if found != list(names):
        raise ValueError(
            f'{path} gives {", ".join(found)}, and the package\'s own test '
            f'is compared with {", ".join(names)}: give what "gdrq export" '
            'wrote of this model without --raw')
    images, = runner.get_inputs()
    _, _, *sides = images.shape
    dtype = torch.uint8 if images.type == 'tensor(uint8)' else torch.float32
    return (lambda image: run(runner, [as_input(image, dtype)]),
            tuple(sides) if all(isinstance(side, int) for side in sides)
            else None)


def need_same_shapes(file: str, found: Any, wanted: Any) -> None:
    """Raise where the outputs of a file are those of another model.

    Args:
        file (str): Its name.
        found (Tensor or sequence): What it gives for an image.
        wanted (Tensor or sequence): What the model gives.

    Raises:
        ValueError: Names both shapes.
    """
    found, wanted = (', '.join(str(tuple(each.shape)) for each in tensors_of(
        outputs)) for outputs in (found, wanted))
    if found != wanted:
        raise ValueError(
            f'{file} gives outputs of shape {found}, the model of the '
            f'checkpoint {wanted}: give what "gdrq export" wrote of this '
            'model')


def main() -> None:
    compare(parse_args())


if __name__ == '__main__':
    run_tool(main)
