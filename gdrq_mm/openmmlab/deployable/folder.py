"""Images of a folder as those of a test set."""
from pathlib import Path
from typing import List

import cv2
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from torch import Tensor

from ..scopes import scope_of, type_name
from .images import inference_pipeline

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.webp')


def images_in(cfg: Config, folder: str, number: int) -> List[Tensor]:
    """Images of a folder through the pipeline of the test set.

    Args:
        cfg (Config): With ``test_dataloader``.
        folder (str): Searched with the folders in it.
        number (int): The most images, first by name.

    Returns:
        list[Tensor]: float32, shape ``(1, 3, H, W)``, 0 to 255.

    Raises:
        FileNotFoundError: There are none, or no such folder.
        ValueError: The pipeline cannot read one of them.
    """
    init_default_scope(scope_of(cfg))
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'{folder} is not a folder of images')
    paths = sorted(path for path in Path(folder).rglob('*')
                   if path.suffix.lower() in IMAGE_SUFFIXES
                   and path.is_file())[:number]
    if not paths:
        raise FileNotFoundError(
            f'{folder} has no image ({", ".join(IMAGE_SUFFIXES)})')
    pipeline = Compose([
        each for each in inference_pipeline(cfg)
        if 'Annotations' not in type_name(each)])
    return [_read(pipeline, path, number)
            for number, path in enumerate(paths)]


def _read(pipeline: Compose, path: Path, number: int) -> Tensor:
    try:
        found = pipeline(dict(img_path=str(path), img_id=number))
    except (AssertionError, OSError, cv2.error) as error:  # by its backend
        raise ValueError(f'{path} cannot be read as an image: remove it, or '
                         'copy it again') from error
    return found['inputs'][None].float()
