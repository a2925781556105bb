"""Images of a folder: those of the data set, and files that are damaged."""
import mmcv
import numpy as np
import pytest
import torch

from gdrq_mm.deployable import first_images
from gdrq_mm.openmmlab.deployable.folder import images_in


def test_images_of_a_folder_are_those_of_the_dataset(load_config, demo_data):
    cfg = load_config('resnet')
    with pytest.raises(FileNotFoundError, match='nowhere is not a folder'):
        images_in(cfg, str(demo_data / 'nowhere'), 2)
    ours = images_in(cfg, str(demo_data / 'imagenet'), 1)[0]
    assert ours.shape == first_images(cfg, 1, 'test')[0].shape
    assert ours.dtype == torch.float32 and ours.max() > 50


def test_folders_that_are_called_like_images_are_searched(load_config,
                                                          tmp_path):
    cfg, folder = load_config('resnet'), tmp_path / 'x.png'
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match='has no image'):
        images_in(cfg, str(tmp_path), 2)
    mmcv.imwrite(np.zeros((40, 40, 3), np.uint8), str(folder / '1.png'))
    assert len(images_in(cfg, str(tmp_path), 2)) == 1


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('length', [0, 10, 1000])
def test_a_damaged_image_is_named(length, backend, load_config, tmp_path):
    cfg = load_config('resnet')
    cfg.test_dataloader.dataset.pipeline[0].imdecode_backend = backend
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    mmcv.imwrite(image, str(tmp_path / 'a.png'))
    mmcv.imwrite(image, str(tmp_path / 'b.png'))
    assert len(images_in(cfg, str(tmp_path), 2)) == 2
    content = (tmp_path / 'b.png').read_bytes()
    (tmp_path / 'b.png').write_bytes(content[:length])
    assert len(images_in(cfg, str(tmp_path), 1)) == 1  # it is not read
    with pytest.raises(ValueError, match='/b.png cannot be read as an image: '
                       'remove it, or copy it again') as raised:
        images_in(cfg, str(tmp_path), 2)
    assert '\n' not in str(raised.value)
