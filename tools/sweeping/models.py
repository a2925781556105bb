"""A family's config -> its model, of reduced size.

Reduced are the size that it is built for, the number of proposals and how
often equal layers follow each other. Channels and every kind of layer stay:
they are what is looked at.
"""
import copy
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

DEPTH = 2
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
    """No pretrained weights, BN that runs without GPUs, few proposals, images
    that are not padded."""
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
            if any(isinstance(one, dict) and (
                    'checkpoint' in one or 'Pretrained' in
                    str(one.get('type'))) for one in each):
                value = None
        elif key == 'type' and value in ('SyncBN', 'MMSyncBN'):
            value = 'BN'
        elif key in REDUCED and isinstance(value, int):
            value = min(value, REDUCED[key]) if value > 0 else value
        changed[key] = _plain(value)
    if changed.get('type') == 'RandomSampler' and 'num' in changed:
        changed['num'] = min(changed['num'], 32)
    if changed.get('type') == 'SegDataPreProcessor':  # to a real image's size
        changed.update(size=None, size_divisor=1)
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
    if cfg.default_scope != 'mmdet' and not needs_pipeline(cfg):
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


def find(node: Any, key: str) -> Iterator[Any]:
    """Values of ``key`` anywhere in a config."""
    return (each[key] for each in _nodes(node) if key in each)


def needs_pipeline(cfg: Config) -> bool:
    """Whether a batch is more than images and labels."""
    words = str(cfg.get('data_preprocessor'))
    return cfg.default_scope == 'mmpretrain' and (
        'SelfSup' in words or 'TwoNorm' in words)
