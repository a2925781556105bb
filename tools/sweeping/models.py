"""A family's config -> its model and a batch, of reduced size.

Reduced are the size of images, the batch, the number of proposals and how
often equal layers follow each other. Channels and every kind of layer stay:
they are what is looked at.
"""
import copy
import importlib
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Tuple

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

BATCH, DEPTH = 2, 2
# Sizes of images, the smallest first; 0 is that of the config.
SIZES = dict(mmpretrain=(64, 224, 0), mmdet=(128, 320), mmseg=(64, 128, 0))
REDUCED = {  # keys of configs anywhere -> at most
    'nms_pre': 100, 'max_per_img': 20, 'num_proposals': 20,
    'num_points': 256, 'nms_post': 50}


def read_config(path: Path, scope: str, options: Optional[dict] = None
                ) -> Config:
    """A config whose model can be built without any download.

    Args:
        path (Path): The file.
        scope (str): Its package, for configs that do not say it.
        options (dict, optional): Changes of it, by dotted keys.
    """
    cfg = Config.fromfile(path)
    cfg.setdefault('default_scope', scope)
    cfg.merge_from_dict(options or {})
    if 'model' not in cfg:
        raise KeyError('the config has no model')
    cfg.model = _plain(cfg.model)
    return cfg


def _plain(node: Any) -> Any:
    """No pretrained weights, BN that runs without GPUs, few proposals."""
    if isinstance(node, (list, tuple)):
        return type(node)(_plain(each) for each in node)
    if not isinstance(node, dict):
        return node
    changed = ConfigDict()
    for key, value in node.items():
        if key in ('pretrained', 'checkpoint', 'teacher_ckpt', 'load_from'):
            value = None
        elif key == 'init_cfg':
            each = value if isinstance(value, (list, tuple)) else [value]
            if any(isinstance(one, dict) and 'Pretrained' in
                   str(one.get('type')) for one in each):
                value = None
        elif key == 'type' and value in ('SyncBN', 'MMSyncBN'):
            value = 'BN'
        elif key in REDUCED and isinstance(value, int):
            value = min(value, REDUCED[key]) if value > 0 else value
        changed[key] = _plain(value)
    if changed.get('type') == 'RandomSampler' and 'num' in changed:
        changed['num'] = min(changed['num'], 32)
    return changed


def shrink(cfg: Config) -> str:
    """Let a model be made for small images, and repeat equal layers less.

    Args:
        cfg (Config): From :func:`read_config`; changed in place.

    Returns:
        str: What was changed, in words; '' where nothing can be.
    """
    init_default_scope(cfg.default_scope)
    changed = []
    if cfg.default_scope == 'mmpretrain' and not _needs_pipeline(cfg):
        least = SIZES[cfg.default_scope][0]
        for node in _nodes(cfg.model):
            size = node.get('img_size')
            sides = size if isinstance(size, (list, tuple)) else [size]
            if all(isinstance(side, int) and side > least for side in sides):
                node['img_size'] = least if isinstance(size, int) else \
                    (least, ) * len(sides)
                changed.append('img_size')
    if any([_make_shallow(node) for node in _nodes(cfg.model)]):
        changed.append('depth')
    return ' and '.join(dict.fromkeys(changed))


def _make_shallow(node: dict) -> bool:
    """Equal layers in a row: :data:`DEPTH` at most."""
    before = copy.deepcopy(node)
    arch = node.get('arch')
    if isinstance(arch, str):
        zoo = getattr(_class_of(node), 'arch_zoo', {})
        settings = next((value for key, value in zoo.items()
                         if arch == key or arch in key), None)
        if isinstance(settings, dict) and {'num_layers', 'depths'} & set(
                settings):
            node['arch'] = ConfigDict(copy.deepcopy(settings))
            _make_shallow(node['arch'])
            if node['arch'] == settings:
                node['arch'] = arch
    if isinstance(node.get('depths'), (list, tuple)):
        node['depths'] = [min(each, DEPTH) for each in node['depths']]
    for layers in (node.get('encoder'), node.get('decoder'), node):
        number = layers.get('num_layers') if isinstance(layers, dict) else 0
        if isinstance(number, int) and number > DEPTH and (
                layers is not node or 'type' not in node):
            layers['num_layers'] = DEPTH
    return node != before


def _class_of(node: dict) -> Any:
    from mmengine.registry import MODELS
    kind = node.get('type')
    if not isinstance(kind, str):
        return kind
    with MODELS.switch_scope_and_registry(None) as registry:
        return registry.get(kind)


def _nodes(node: Any) -> Iterator[dict]:
    """All dicts in a config."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for each in node:
            yield from _nodes(each)


def build(cfg: Config, init: bool = True) -> nn.Module:
    """The model with its first weights, the same each time.

    Args:
        cfg (Config): From :func:`read_config`.
        init (bool): False where others are loaded into it. Defaults to True.
    """
    from mmengine.registry import MODELS
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    np.random.seed(0)
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor',
                         copy.deepcopy(cfg.data_preprocessor))
    preprocessor = model.get('data_preprocessor')
    if isinstance(preprocessor, dict):
        preprocessor.pop('batch_augments', None)  # other sizes by chance
    model = MODELS.build(model)
    if init and hasattr(model, 'init_weights'):
        model.init_weights()
    return model


def batches(cfg: Config) -> Iterator[Tuple[str, Callable]]:
    """Ways to make a batch for this model, to be tried in turn.

    Yields:
        tuple[str, callable]: What was reduced, in words, and a function that
        makes the batch anew.
    """
    scope = cfg.default_scope
    make = dict(mmpretrain=_pretrain_batch, mmdet=_det_batch,
                mmseg=_seg_batch)[scope]
    if _needs_pipeline(cfg):
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


def _find(node: Any, key: str) -> Iterator[Any]:
    """Values of ``key`` anywhere in a config."""
    return (each[key] for each in _nodes(node) if key in each)


def _needs_pipeline(cfg: Config) -> bool:
    """Whether a batch is more than images and labels."""
    words = str(cfg.get('data_preprocessor'))
    return cfg.default_scope == 'mmpretrain' and (
        'SelfSup' in words or 'TwoNorm' in words)


def own_size(cfg: Config) -> Tuple[int, int]:
    for found in (cfg.get('crop_size'), *_find(cfg.model, 'img_size'),
                  *_find(cfg.model, 'size'),
                  *_find(cfg.get('test_dataloader'), 'crop_size'),
                  *_find(cfg.get('test_dataloader'), 'scale')):
        if isinstance(found, int):
            return found, found
        if isinstance(found, (list, tuple)) and len(found) == 2:
            return tuple(found)
    return 224, 224


def _classes(cfg: Config, default: int) -> int:
    found = [value for value in _find(cfg.model, 'num_classes')
             if isinstance(value, int) and value > 1]
    return min(found, default=default)


def images_for(cfg: Config, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    means = next(_find(cfg.get('data_preprocessor'), 'mean'), None) or [0] * 3
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
    classes = _classes(cfg, 80)
    shapes = [[3, height, width]] * BATCH
    words = str(cfg.model)
    if 'TrackDataPreprocessor' in words:
        return demo_track_inputs(
            batch_size=1, num_frames=2, key_frames_inds=[0],
            image_shapes=(3, height, width), num_items=[4],
            num_classes=max(classes, 2), with_mask='mask' in words.lower())
    torch.manual_seed(0)
    np.random.seed(0)
    batch = demo_mm_inputs(
        BATCH, shapes, num_items=[4] * BATCH, num_classes=max(classes, 2),
        with_mask='mask' in words.lower(), with_semantic=True,
        use_box_type=True)
    for sample in batch['data_samples']:
        sample.gt_instances.instances_ids = torch.arange(4)
        sample.set_metainfo(dict(scale_factor=(1., 1.),
                                 batch_input_shape=(height, width),
                                 pad_shape=(height, width)))
    if 'MultiBranch' in words:
        branches = 'sup', 'unsup_teacher', 'unsup_student'
        for sample in batch['data_samples']:
            sample.set_metainfo(dict(homography_matrix=np.eye(3)))
        return dict(
            inputs={each: copy.deepcopy(batch['inputs'])
                    for each in branches},
            data_samples={each: copy.deepcopy(batch['data_samples'])
                          for each in branches})
    return batch


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
