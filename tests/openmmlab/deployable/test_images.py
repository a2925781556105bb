"""Images of data sets: their sizes, what they are padded with."""
import pytest
import torch
from mmengine.config import Config

from gdrq_mm.openmmlab.deployable.images import (
    default_size,
    inference_pipeline,
    pad_image,
    padding_pixel,
    sizing_transforms,
    with_pipelines,
)


def config(*pipeline, **preprocessor):
    return Config(dict(
        model=dict(data_preprocessor=preprocessor),
        test_dataloader=dict(dataset=dict(pipeline=list(pipeline)))))


@pytest.mark.parametrize('pad, size', [
    (dict(size_divisor=32), (512, 512)), (dict(size=(640, 480)), (500, 640)),
    (dict(pad_to_square=True, size_divisor=7), (504, 504))])
def test_size_holds_what_the_pipeline_pads(pad, size):
    cfg = config(
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(500, 333), keep_ratio=True),
        dict(type='Pad', **pad), dict(type='PackInputs'))
    assert default_size(cfg, ()) == size


@pytest.mark.parametrize('transform, size', [
    (dict(type='CenterCrop', crop_size=224), (224, 224)),
    (dict(type='Resize', scale=(96, 64)), (64, 96)),
    (dict(type='Resize', scale=32), (32, 32)),
    (dict(type='Resize', scale=(96, 64), keep_ratio=True), (96, 96))])
def test_size_is_that_of_the_pipeline(transform, size):
    cfg = config(dict(type='LoadImageFromFile'), transform,
                 dict(type='PackInputs'))
    assert default_size(cfg, ()) == size


def test_a_pipeline_without_a_size_needs_one():
    with pytest.raises(ValueError, match='--shape'):
        default_size(config(dict(type='PackInputs')), ())


def test_padding_has_the_channels_of_the_data_preprocessor():
    cfg = config(mean=[33.46], std=[78.87])
    assert pad_image(cfg, torch.zeros(1, 1, 8, 8), (9, 9)).shape[1] == 1
    with pytest.raises(ValueError, match='3 channels, .* preprocessor 1'):
        pad_image(cfg, torch.zeros(1, 3, 8, 8), (9, 9))
    assert pad_image(config(), torch.zeros(1, 4, 8, 8), (9, 9)).shape[1] == 4


@pytest.mark.parametrize('flag', ['bgr_to_rgb', 'rgb_to_bgr', 'to_rgb'])
def test_padding_has_the_mean_in_the_order_of_images(flag):
    cfg = config(mean=[10., 100., 200.], std=[1., 1., 1.], **{flag: True})
    padded = pad_image(cfg, torch.zeros(1, 3, 1, 1), (1, 2))
    assert padded[0, :, 0, 1].tolist() == [200, 100, 10]
    # Other numbers of channels are in the order of the data.
    cfg = config(mean=[1., 2., 3., 4.], std=[1.] * 4, **{flag: True})
    padded = pad_image(cfg, torch.zeros(1, 4, 1, 1), (1, 2))
    assert padded[0, :, 0, 1].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize('wrap', [
    lambda each: dict(type='RepeatDataset', times=3, dataset=each),
    lambda each: dict(type='RepeatDataset', times=3, dataset=dict(
        type='ConcatDataset', datasets=[each, dict(each)])),
    lambda each: dict(type='MultiImageMixDataset', dataset=dict(each),
                      pipeline=each['pipeline'])])
def test_pipelines_are_those_of_wrapped_datasets(wrap):
    """As of VOC, Cityscapes and LVIS."""
    one = dict(type='VOCDataset', pipeline=[dict(type='PackDetInputs')])
    dataset = Config(wrap(one))._cfg_dict
    parts = with_pipelines(dataset)
    assert all(part.pipeline == one['pipeline'] for part in parts)
    assert {part.type for part in parts} <= {'VOCDataset',
                                             'MultiImageMixDataset'}
    assert inference_pipeline(Config(dict(test_dataloader=dict(
        dataset=dataset)))) == one['pipeline']


def test_a_file_says_how_images_get_their_size_and_what_pads_them():
    resize = dict(type='Resize', scale=(48, 32), keep_ratio=True)
    packing = dict(type='PackInputs')
    normal = dict(mean=[1., 2., 3.], std=[1., 2., 4.])
    cfg = config(dict(type='LoadImageFromFile'), resize, packing,
                 bgr_to_rgb=True, pad_value=2, **normal)
    assert sizing_transforms(cfg) == [resize]
    assert padding_pixel(cfg, 3).tolist() == [11, 6, 3]
    assert padding_pixel(config(resize), 3).tolist() == [0, 0, 0]
    cfg.pop('test_dataloader')
    assert sizing_transforms(cfg) == []
    assert padding_pixel(cfg, 3).tolist() == [11, 6, 3]
    # The pipeline's own padding is of pixels, not of normalized ones.
    for value, expected in ((dict(img=(114, 114, 114)), [114] * 3),
                            (7, [7] * 3), (None, [0] * 3)):
        pad = dict(type='Pad', size=(48, 48))
        if value is not None:
            pad['pad_val'] = value
        cfg = config(resize, pad, packing, **normal)
        assert sizing_transforms(cfg) == [resize, pad]
        assert padding_pixel(cfg, 3).tolist() == expected
        padded = pad_image(cfg, torch.full((1, 3, 4, 4), 9.), (5, 4))
        assert padded[0, :, -1, 0].tolist() == expected
