"""Images to calibrate with where there is no data."""
import pytest
import torch
from mmengine.config import Config

from gdrq_mm.openmmlab.deployable.synthetic import synthetic_images


def config(**preprocessor):
    return Config(dict(model=dict(data_preprocessor=preprocessor)))


def test_noise_has_the_statistics_of_the_data_in_the_order_of_images():
    cfg = config(mean=[60., 128., 190.], std=[10., 20., 30.],
                 bgr_to_rgb=True)
    images = torch.cat(synthetic_images(cfg, 8, (64, 96)))
    assert images.shape == (8, 3, 64, 96) and images.dtype == torch.float32
    assert 0 <= images.min() and images.max() <= 255
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.tensor(
        [190., 128., 60.]), atol=10, rtol=0)
    assert torch.equal(images, torch.cat(synthetic_images(cfg, 8, (64, 96))))
    # Neighbours are alike, as in photographs.
    steps = images.diff(dim=3).std() / images.std()
    assert steps < 1.2


def test_images_have_the_channels_of_the_data_preprocessor():
    cfg = config(mean=[33.46], std=[78.87])
    assert synthetic_images(cfg, 1, (32, 32))[0].shape == (1, 1, 32, 32)


@pytest.mark.parametrize('flag', ['bgr_to_rgb', 'rgb_to_bgr', 'to_rgb'])
def test_other_numbers_of_channels_are_in_the_order_of_the_data(flag):
    cfg = config(mean=[1., 2., 3., 4.], std=[1.] * 4, **{flag: True})
    assert synthetic_images(cfg, 8, (32, 32))[0].mean((0, 2, 3)).argmax() == 3
