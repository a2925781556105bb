"""Batches of images for a family's model, of reduced size."""
import copy
import importlib
from typing import Callable, Iterator, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from .models import SIZES, find, needs_pipeline

BATCH = 2


def batches(cfg: Config) -> Iterator[Tuple[str, Callable]]:
    """Ways to make a batch for this model, to be tried in turn.

    Yields:
        tuple[str, callable]: What was reduced, in words, and a function that
        makes the batch anew.
    """
    scope = cfg.default_scope
    make = dict(mmpretrain=_pretrain_batch, mmdet=_det_batch,
                mmseg=_seg_batch)[scope]
    if needs_pipeline(cfg):
        yield 'the training pipeline\'s own size', lambda: \
            _pipeline_batch(cfg)
    for size in SIZES[scope]:
        if size:
            yield f'{size} x {size} pixels', \
                lambda size=size: make(cfg, size, size)
        else:
            height, width = own_size(cfg)
            yield f'{height} x {width} pixels, as in the config', \
                lambda: make(cfg, height, width)


def own_size(cfg: Config) -> Tuple[int, int]:
    for found in (cfg.get('crop_size'), *find(cfg.model, 'img_size'),
                  *find(cfg.model, 'size'),
                  *find(cfg.get('test_dataloader'), 'crop_size'),
                  *find(cfg.get('test_dataloader'), 'scale')):
        if isinstance(found, int):
            return found, found
        if isinstance(found, (list, tuple)) and len(found) == 2:
            return tuple(found)
    return 224, 224


def _classes(cfg: Config, default: int) -> int:
    found = [value for value in find(cfg.model, 'num_classes')
             if isinstance(value, int)]
    # First stages have one class.
    return min([value for value in found if value > 1] or found,
               default=default)


def images_for(cfg: Config, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    means = next(find(cfg.get('data_preprocessor'), 'mean'), None) or [0] * 3
    return torch.randint(0, 256, (BATCH, len(means), height, width),
                         generator=generator, dtype=torch.uint8)


def _pretrain_batch(cfg: Config, height: int, width: int) -> dict:
    from mmpretrain.structures import DataSample
    classes = _classes(cfg, 10)
    samples = []
    for index in range(BATCH):
        sample = DataSample(metainfo=dict(
            img_shape=(height, width), ori_shape=(height, width)))
        score = torch.zeros(classes)
        score[index % classes] = 1
        samples.append(sample.set_gt_label([index % classes])
                       .set_gt_score(score))
    return dict(inputs=images_for(cfg, height, width), data_samples=samples)


def _pipeline_batch(cfg: Config) -> dict:
    """What self-supervised models need: views and masks of the pipeline."""
    from mmcv.transforms import Compose
    from mmengine.dataset import default_collate
    init_default_scope(cfg.default_scope)
    pipeline = Compose([each for each in cfg.train_dataloader.dataset.pipeline
                        if 'LoadImage' not in str(each.get('type'))])
    np.random.seed(0)
    torch.manual_seed(0)
    packed = []
    for index in range(BATCH):
        image = np.random.randint(0, 256, (256, 256, 3), dtype=np.uint8)
        packed.append(pipeline(dict(
            img=image, img_shape=(256, 256), ori_shape=(256, 256),
            gt_label=index, img_path='')))
    return default_collate(packed)


def _det_batch(cfg: Config, height: int, width: int) -> dict:
    from mmdet.testing import demo_mm_inputs, demo_track_inputs
    known = _classes(cfg, 80)
    # mmdet draws labels from 1 on, and maps of classes in uint8.
    classes = min(max(known, 2), 255)
    shapes = [[3, height, width]] * BATCH
    words = str(cfg.model)
    # Some trackers train their detector, on single images.
    if 'TrackDataPreprocessor' in words and not any(
            find(cfg.model, 'use_det_processor')):
        return demo_track_inputs(
            batch_size=1, num_frames=2, key_frames_inds=[0],
            image_shapes=(3, height, width), num_items=[4],
            num_classes=classes, with_mask='mask' in words.lower())
    torch.manual_seed(0)
    np.random.seed(0)
    batch = demo_mm_inputs(
        BATCH, shapes, num_items=[4] * BATCH, num_classes=classes,
        with_mask='mask' in words.lower(), with_semantic=True,
        use_box_type=True)
    for sample in batch['data_samples']:
        sample.gt_instances.labels.clamp_(max=known - 1)
        sample.gt_instances.instances_ids = torch.arange(4)
        sample.set_metainfo(dict(scale_factor=(1., 1.),
                                 batch_input_shape=(height, width),
                                 pad_shape=(height, width)))
    if 'MultiBranch' in words:
        branches = 'sup', 'unsup_teacher', 'unsup_student'
        for sample in batch['data_samples']:
            sample.set_metainfo(dict(
                homography_matrix=np.eye(3, dtype=np.float32)))
        return dict(
            inputs={each: copy.deepcopy(batch['inputs'])
                    for each in branches},
            data_samples={each: copy.deepcopy(batch['data_samples'])
                          for each in branches})
    return batch


def as_video(batch: dict) -> dict:
    """The images of a batch of mmdet as the frames of one video."""
    from mmdet.structures import TrackDataSample
    for number, frame in enumerate(batch['data_samples']):
        frame.set_metainfo(dict(frame_id=number))
    video = TrackDataSample()
    video.video_data_samples = batch['data_samples']
    return dict(inputs=torch.stack(list(batch['inputs']))[None],
                data_samples=[video])


def _seg_batch(cfg: Config, height: int, width: int) -> dict:
    from mmengine.structures import PixelData
    samples_of = importlib.import_module('mmseg.structures')
    classes = _classes(cfg, 19)
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(BATCH):
        sample = samples_of.SegDataSample(metainfo=dict(
            img_shape=(height, width), ori_shape=(height, width),
            pad_shape=(height, width), flip=False, flip_direction=None,
            padding_size=[0, 0, 0, 0]))
        blocks = torch.randint(0, classes, (1, 4, 4), generator=generator)
        label = blocks.repeat_interleave(height // 4 + 1, 1) \
            .repeat_interleave(width // 4 + 1, 2)[:, :height, :width]
        sample.gt_sem_seg = PixelData(data=label)
        sample.gt_edge_map = PixelData(data=(label % 2))
        samples.append(sample)
    return dict(inputs=list(images_for(cfg, height, width)),
                data_samples=samples)
