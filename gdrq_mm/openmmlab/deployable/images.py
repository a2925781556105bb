"""Images of a config's data sets, in the size and type that a file takes."""
import copy
from typing import Iterator, List, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor

from ..evaluating import in_this_process
from ..scopes import scope_of, type_name
from .models import reverses_channels


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
    """The transforms of the test set.

    Raises:
        ValueError: The config has none.
    """
    if not cfg.get('test_dataloader'):
        raise ValueError(
            f'{cfg.filename} has no test_dataloader, whose pipeline says how '
            'large images are; say it with --shape HEIGHT WIDTH')
    return with_pipelines(cfg.test_dataloader.dataset)[0].pipeline


def sizing_transforms(cfg: Config) -> List[dict]:
    """What gives images of the test set their size, in order: transforms that
    resize, crop and pad, with their types in text; none where the config has
    no test set."""
    if not cfg.get('test_dataloader'):
        return []
    return [dict(each, type=type_name(each))
            for each in inference_pipeline(cfg)
            if type_name(each) == 'Pad' or {'scale', 'crop_size'} & {*each}]


def padding_pixel(cfg: Config, channels: int) -> Tensor:
    """What images are padded with, in the channel order of images: by the
    pipeline, or, where it does not, by the data preprocessor, the value that
    normalization maps to its padding.

    Raises:
        ValueError: The data preprocessor has other channels.
    """
    normal = _mean_pixel(cfg, channels)
    if len(normal) != channels:
        raise ValueError(
            f'an image has {channels} channels, mean and std of the data '
            f'preprocessor {len(normal)}; give it as many')
    for transform in sizing_transforms(cfg):
        if transform['type'] == 'Pad':
            value = transform.get('pad_val', 0)
            value = value.get('img', 0) if isinstance(value, dict) else value
            return torch.tensor(value).float().expand(channels)
    return normal


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
    """Enlarge an image, as the file's metadata say (``padding``).

    Raises:
        ValueError: The image is larger than ``size``, or has other channels
            than the data preprocessor.
    """
    fill = padding_pixel(cfg, image.shape[1])
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
