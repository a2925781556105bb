"""The metric of a deployed model: mm dataset, any function, mm evaluator."""
import copy
import math
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
)

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from ..evaluating import in_this_process
from ..publish import inference_config, load_all
from ..reading import read_checkpoint, weights_of
from ..scopes import build_model, read_config, scope_of, type_name
from .equal_predictions import count_equal
from .models import reverses_channels
from .two_stage import paste


def load_model(config: str, checkpoint: str,
               cfg_options: Optional[dict] = None) -> Tuple[Config, nn.Module]:
    """A trained (or published) quantized model, in eval mode.

    Returns:
        tuple[Config, nn.Module]: The config in ``QuantizedModel`` form.

    Raises:
        CheckpointError: The checkpoint is of another model, if in part.
    """
    cfg = read_config(config, cfg_options)
    cfg = inference_config(cfg)
    model = build_model(cfg)
    load_all(model, weights_of(read_checkpoint(checkpoint)))
    model.eval()  # returns nothing in some models
    return cfg, model


def images_of(cfg: Config, split: str, size: Optional[Tuple[int, int]] = None
              ) -> Iterator[Tuple[Tensor, object]]:
    """Images of a dataset through the pipeline of the test set.

    Args:
        cfg (Config): With dataloaders.
        split (str): 'train', 'val' or 'test': whose images.
        size (tuple[int, int], optional): Height and width; smaller images are
            padded at the right and at the bottom.

    Yields:
        tuple[Tensor, object]: float32 image ``(1, 3, H, W)``, and its data
        sample.

    Raises:
        ValueError: An image is larger than ``size``.
    """
    init_default_scope(scope_of(cfg))
    loader = copy.deepcopy(cfg[f'{split}_dataloader'])
    if split == 'train':
        for dataset in with_pipelines(loader.dataset):
            dataset.pipeline = inference_pipeline(cfg)
    loader.update(batch_size=1, sampler=dict(
        type='DefaultSampler', shuffle=split == 'train'))
    for batch in Runner.build_dataloader(in_this_process(loader), seed=0):
        image = batch['inputs'][0][None].float()
        sample = batch['data_samples'][0]
        if size is not None:
            image = pad_image(cfg, image, size)
        yield image, sample


def with_pipelines(dataset: dict) -> List[dict]:
    """The parts of a dataset's config that have a pipeline: itself, or what
    it wraps (RepeatDataset, ConcatDataset, ...)."""
    wrapped = [each for each in (*dataset.get('datasets', ()),
                                 dataset.get('dataset')) if each]
    if 'pipeline' in dataset or not wrapped:
        return [dataset]
    return [part for each in wrapped for part in with_pipelines(each)]


def inference_pipeline(cfg: Config) -> List[dict]:
    """The transforms of the test set."""
    return with_pipelines(cfg.test_dataloader.dataset)[0].pipeline


def _mean_pixel(cfg: Config, channels: int) -> Tensor:
    """What normalization maps to the value that images are padded with, in
    the channel order of images."""
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get(
        'data_preprocessor') or {}
    mean = preprocessor.get('mean') or [0.] * channels
    std = preprocessor.get('std') or [1.] * channels
    value = preprocessor.get('pad_value', preprocessor.get('pad_val', 0)) or 0
    fill = [each * value + middle for each, middle in zip(std, mean)]
    return torch.tensor(
        fill[::-1] if reverses_channels(preprocessor) else fill)


def default_size(cfg: Config, images: Sequence[Tensor]) -> Tuple[int, int]:
    """A height and width that every image of the test set fits in.

    Args:
        cfg (Config): Where its pipeline keeps the aspect ratio, it is a
            square of the longest side there may be, padded as behind it.
        images (sequence of Tensor): Else as large as the largest of these;
            where there are none, as the pipeline resizes or crops.

    Raises:
        ValueError: There are no images, and the pipeline leaves them as they
            are.
    """
    pipeline = inference_pipeline(cfg)
    for place, transform in enumerate(pipeline):
        if transform.get('keep_ratio') and 'scale' in transform:
            scale = transform['scale']
            side = scale if isinstance(scale, int) else max(scale)
            return _padded((side, side), pipeline[place + 1:])
    if not images:
        return _pipeline_size(cfg)
    return tuple(max(image.shape[axis] for image in images)
                 for axis in (2, 3))


def _padded(size: Tuple[int, int], transforms: List[dict]
            ) -> Tuple[int, int]:
    """A height and width behind all ``Pad`` among some transforms."""
    for transform in transforms:
        if type_name(transform) != 'Pad':
            continue
        width, height = transform.get('size') or (0, 0)
        size = max(size[0], height), max(size[1], width)
        if transform.get('pad_to_square'):
            size = (max(size), ) * 2
        divisor = transform.get('size_divisor') or 1
        size = tuple(-(-side // divisor) * divisor for side in size)
    return size


def _pipeline_size(cfg: Config) -> Tuple[int, int]:
    """The size that the pipeline of the test set gives all images."""
    for transform in reversed(inference_pipeline(cfg)):
        wanted = transform.get('crop_size', transform.get('scale'))
        kind = type_name(transform)
        if kind in ('CenterCrop', 'Resize') and wanted:
            width, height = (wanted, ) * 2 if isinstance(
                wanted, int) else wanted
            return height, width
    raise ValueError('the pipeline of the test set gives images no size of '
                     'their own; say one with --shape HEIGHT WIDTH')


def pad_image(cfg: Config, image: Tensor, size: Tuple[int, int]) -> Tensor:
    """Enlarge an image as the package pads it.

    Raises:
        ValueError: The image is larger than ``size``, or has other channels
            than the data preprocessor.
    """
    fill = _mean_pixel(cfg, image.shape[1])
    if len(fill) != image.shape[1]:
        raise ValueError(
            f'an image has {image.shape[1]} channels, mean and std of the '
            f'data preprocessor {len(fill)}; give it as many')
    height, width = (wanted - there for wanted, there in zip(
        size, image.shape[2:]))
    if height < 0 or width < 0:
        raise ValueError(
            f'an image is {tuple(image.shape[2:])}, larger than the exported '
            f'{tuple(size)}; export with a larger --shape, or resize in the '
            'pipeline')
    canvas = fill.view(1, -1, 1, 1).expand(1, -1, *size).clone()
    canvas[..., :image.shape[2], :image.shape[3]] = image
    return canvas


def as_input(image: Tensor, dtype: torch.dtype) -> Tensor:
    """An image in the type of a file's input; what it is padded with is no
    integer.

    Args:
        image (Tensor): float32, 0 to 255.
        dtype (torch.dtype): ``torch.float32`` or ``torch.uint8``.
    """
    return image.to(dtype) if dtype.is_floating_point else \
        image.round().clamp(0, 255).to(dtype)


def first_images(cfg: Config, number: int, split: str = 'train',
                 size: Optional[Tuple[int, int]] = None) -> List[Tensor]:
    """Images to calibrate with."""
    images = []
    for image, _ in images_of(cfg, split, size):
        images.append(image)
        if len(images) == number:
            break
    return images


def evaluate(cfg: Config, functions: Dict[str, Callable],
             size: Tuple[int, int]) -> Dict[str, Dict[str, float]]:
    """Metrics of several functions on the test set, in one go over it.

    Args:
        cfg (Config): With ``test_dataloader`` and ``test_evaluator``.
        functions (dict[str, callable]): Image -> outputs, as the deployable
            models give them.
        size (tuple[int, int]): Height and width they take.

    Returns:
        dict[str, dict[str, float]]: By function and metric. ``agreement`` is
        the share of predictions that are those of the first function, in
        percent (see :func:`.equal_predictions.count_equal`); NaN where
        neither predicts anything.
    """
    scope, evaluators = scope_of(cfg), evaluators_of(cfg, functions)
    agreement, images = {name: [0, 0] for name in functions}, 0
    for image, sample in images_of(cfg, 'test', size):
        first, images = None, images + 1
        for name, function in functions.items():
            outputs = tensors_of(function(image))
            first = outputs if first is None else first
            counts = count_equal(scope, sample, outputs, first)
            agreement[name] = [sum(each) for each in zip(
                agreement[name], counts)]
            filled = with_predictions(cfg, copy.deepcopy(sample), outputs)
            evaluators[name].process([filled], dict(inputs=[image[0]]))
    return {name: dict(evaluators[name].evaluate(images),
                       agreement=100 * equal / total if total else math.nan)
            for name, (equal, total) in agreement.items()}


def evaluators_of(cfg: Config, names: Iterable[str]) -> Dict[str, Evaluator]:
    """An evaluator of the test set for each of several names."""
    init_default_scope(scope_of(cfg))
    dataset = Runner.build_dataloader(
        in_this_process(cfg.test_dataloader)).dataset
    evaluators = {}
    for name in names:
        evaluators[name] = Evaluator(copy.deepcopy(cfg.test_evaluator))
        evaluators[name].dataset_meta = dataset.metainfo
    return evaluators


def tensors_of(outputs: Any) -> List[Tensor]:
    """Outputs of a deployable model, or of a file, as tensors."""
    return [torch.as_tensor(each) for each in (
        outputs if isinstance(outputs, (tuple, list)) else [outputs])]


def with_predictions(cfg: Config, sample: Any, outputs: Sequence[Tensor]
                     ) -> Any:
    """The data sample with the predictions in it.

    Args:
        cfg (Config): Config of the model.
        sample (BaseDataElement): Data sample of the image; changed in place.
        outputs (sequence of Tensor): As deployable models give them.
    """
    scope = scope_of(cfg)
    if scope == 'mmpretrain':
        scores, = outputs
        return sample.set_pred_score(scores[0]).set_pred_label(
            scores.argmax(1))
    if scope == 'mmseg':
        classes = outputs[0][:, None].float()
        height, width = sample.img_shape
        classes = F.interpolate(classes[..., :height, :width],
                                sample.ori_shape, mode='nearest')
        sample.pred_sem_seg = PixelData(data=classes[0].long())
        return sample
    boxes, scores, labels, *masks = (each[0] for each in outputs)
    there = labels >= 0
    scale = torch.tensor(sample.scale_factor).repeat(2)
    found = InstanceData(bboxes=boxes[there] / scale, scores=scores[there],
                         labels=labels[there])
    if masks:
        found.masks = paste(
            masks[0][there], found.bboxes, sample.ori_shape
        ) >= cfg.model.test_cfg.rcnn.mask_thr_binary
    sample.pred_instances = found
    return sample
