"""Images to calibrate with where there are none: a published file alone."""
from typing import List, Tuple

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor

from .models import reverses_channels

COARSEST = 4  # cells of the coarsest noise along a side


def synthetic_images(cfg: Config, number: int, size: Tuple[int, int]
                     ) -> List[Tensor]:
    """Images of noise with the mean and spread of the data.

    Noise of all scales, each as strong as the next (as in photographs, whose
    energy falls with frequency), to the mean and standard deviation of the
    data preprocessor.

    Args:
        cfg (Config): The config of the model.
        number (int): How many images; always the same ones.
        size (tuple[int, int]): Height and width.

    Returns:
        list[Tensor]: float32, shape ``(1, C, H, W)``, 0 to 255; as many
        channels as the data preprocessor has means, else 3.
    """
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get(
        'data_preprocessor') or {}
    mean = torch.tensor(preprocessor.get('mean') or [127.5] * 3)
    std = torch.tensor(preprocessor.get('std') or [64.] * 3)
    if reverses_channels(preprocessor):
        mean, std = mean.flip(0), std.flip(0)
    generator = torch.Generator().manual_seed(0)
    images = []
    for _ in range(number):
        noise, cells = torch.zeros(1, len(mean), *size), COARSEST
        while cells <= min(size):
            noise = noise + F.interpolate(
                torch.randn(1, len(mean), cells, cells, generator=generator),
                size, mode='bilinear')
            cells *= 2
        noise = noise / noise.std().clamp(min=1e-6)
        images.append((noise * std.view(1, -1, 1, 1) + mean.view(
            1, -1, 1, 1)).round().clamp(0, 255))
    return images
