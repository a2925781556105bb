"""Differences between two checkpoints of a config, or of one and a file."""
import pickle
from typing import List, Optional

from ..analysis.diff import Difference, compare_models
from ..analysis.sensitivity import PARTS, float_parts
from ..training import get_state
from .bench import Bench

FLOAT = 'float'


def diff_checkpoints(first: str, second: str, config: str, batches: int = 2,
                     cfg_options: Optional[dict] = None) -> List[Difference]:
    """Compare two models on validation images.

    Args:
        first (str): A checkpoint, float or quantized; 'float' is the second
            one with its quantizers switched off.
        second (str): A checkpoint, or a qdq, tensorrt or qonnx file that was
            exported from the first one.
        config (str): Config of the quantized model.
        batches (int): Number of batches of the validation data; of images for
            a file. Defaults to 2.
        cfg_options (dict, optional): Changes of the config.

    Raises:
        ValueError: There is nothing to compare, or a file was calibrated with
            images that it does not have.
    """
    if second.endswith('.onnx'):
        return _diff_onnx(first, second, config, batches, cfg_options)
    bench = Bench(config, second, batches, cfg_options=cfg_options)
    model, in_float = bench.model, {}
    if first == FLOAT:
        if not bench.is_trained:
            raise ValueError(f'{second} is a float model already; give a '
                             'quantized checkpoint, or two checkpoints')
        bench.need_latent_weights()
        reference = bench.model
        in_float = dict.fromkeys(get_state(reference).layers, PARTS['both'])
    else:
        reference = Bench(config, first, 1, cfg_options=cfg_options).model
    with float_parts(reference, in_float):
        return compare_models(reference, model, [
            lambda model, batch=pickle.dumps(batch): model.test_step(
                pickle.loads(batch)) for batch in bench.batches])


def _diff_onnx(checkpoint: str, path: str, config: str, images: int,
               cfg_options: Optional[dict]) -> List[Difference]:
    from ..analysis.diff_onnx import (
        compare_onnx,
        compare_qonnx,
        facts_of_file,
        images_of_file,
        is_qonnx,
    )
    from ..integer import to_integer
    from ..merge import merge
    from .deployable import (
        default_size,
        first_images,
        load_model,
        make_deployable,
        pad_image,
    )
    from .deployable.images import as_input
    from .deployable.synthetic import synthetic_images
    cfg, model = load_model(config, checkpoint, cfg_options)
    size, dtype = images_of_file(path)
    # The images that gdrq export had: they set the grids of sums.
    facts = facts_of_file(path)
    if size is None and 'image_size' in facts:
        size = tuple(map(int, facts['image_size'].split()))
    number = int(facts.get('calibration_images', 32))
    kind = facts.get('calibration', 'training set')
    if kind == 'folder of images' and not is_qonnx(path):
        raise ValueError(
            f'{path} was calibrated with a folder of images, which sets the '
            'grids of sums and is not known here: compare a file that was '
            'exported with the training set, or without any '
            '(--calibration none)')
    if kind == 'synthetic images':
        size = size or default_size(cfg, ())
        calibration = synthetic_images(cfg, number, size)
    else:
        calibration = first_images(cfg, number)
        size = size or default_size(cfg, calibration)
    split = 'val' if cfg.get('val_dataloader') else 'test'

    def prepared(each):
        return [as_input(pad_image(cfg, image, size), dtype)
                for image in each]

    calibration = prepared(calibration)
    examples = [(image, ) for image in prepared(
        first_images(cfg, images, split))]
    model = make_deployable(model, raw=facts.get('raw') == 'True').eval()
    merged = merge(model, calibration[0])
    if is_qonnx(path):
        return compare_qonnx(merged, path, examples)
    integer = to_integer(
        merged, calibration[0], calibration,
        'int8' if facts.get('format') == 'tensorrt' else 'uint8')
    return compare_onnx(integer, path, examples)
