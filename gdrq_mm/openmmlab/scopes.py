"""What differs between the OpenMMLab packages, by their default scope."""
import argparse
import copy
import importlib
import re
from pathlib import Path
from typing import Optional, Tuple, Union

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from torch import nn

# Where a value, or a part of a list, begins as a dict does.
_DICT = re.compile(r'(^|[\[(,])[\s"\']*(\{|dict\()')

SAMPLES = dict(mmdet='DetDataSample', mmseg='SegDataSample',
               mmpretrain='DataSample')


def scope_of(cfg: Config) -> str:
    """The package a config belongs to: its ``default_scope``, or, as those in
    mmengine's pure Python style have none, the home of its model's class.

    Raises:
        ValueError: It is of none of the three packages.
    """
    scope = cfg.get('default_scope')
    if scope is None:
        scope = _home_of(cfg.get('model') or {}) or scope
    if scope not in SAMPLES:
        raise ValueError(
            f'default_scope is {scope!r} in {cfg.filename}, allowed: '
            f'{", ".join(SAMPLES)}; inherit a default_runtime.py of one of '
            'these packages, or write it into the config')
    return scope


def _home_of(model: dict) -> str:
    """The package of a model's type: a class, or its full name in text."""
    kinds = (model.get(key) for key in ('architecture', 'type'))
    paths = (kind if isinstance(kind, str) else getattr(
        kind, '__module__', '') for kind in kinds)
    homes = (path.partition('.')[0] for path in paths if '.' in path)
    return next((home for home in homes if home in SAMPLES), '')


def type_name(node: dict) -> str:
    """Name of what a part of a config builds: its type is text or a class."""
    kind = node.get('type')
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def package_tool(scope: str, name: str) -> Path:
    """Path of a package's own installed tool, such as ``train.py``."""
    package = importlib.import_module(scope)
    folder = Path(package.__file__).parent
    for path in (folder / '.mim' / 'tools' / name,
                 folder.parent / 'tools' / name):  # editable installs
        if path.exists():
            return path
    raise FileNotFoundError(f'{scope} is installed without its tools '
                            f'({name}); reinstall it with pip or mim')


def read_config(path: Union[str, Path],
                cfg_options: Optional[dict] = None) -> Config:
    """The config of a model.

    Args:
        path (str): The file.
        cfg_options (dict, optional): Changes, by names with dots.

    Raises:
        OSError: There is no such file.
        ValueError: It is no Python, or has no model.
    """
    try:
        cfg = Config.fromfile(path)
    except FileNotFoundError as error:
        if not str(path).startswith('gdrq_mm::'):
            raise
        raise FileNotFoundError(
            f'{path} is not found ({error}). Such names are those of an '
            'installed package, and an editable install of gdrq_mm has none: '
            "give the config's path in the checkout, or pip install ."
        ) from error
    except (OSError, ImportError):
        raise
    except Exception as error:  # whatever code in it raises
        raise ValueError(f'{path} is no config that can be read: '
                         f'{_in_words(error)}') from error
    if not cfg.get('model'):
        raise ValueError(f'{path} has no model: give the config of a '
                         'training, with model=dict(type=...)')
    try:
        cfg.merge_from_dict(cfg_options or {})
    except (KeyError, TypeError, AssertionError) as error:
        raise ValueError(f'{path} takes no such --cfg-options: '
                         f'{_in_words(error)}') from error
    return cfg


def _in_words(error: Exception) -> str:
    line = getattr(error, 'lineno', None)
    if line is not None:
        return f'{getattr(error, "msg", error)} (line {line})'
    # A KeyError shows its text as Python writes it.
    text = error.args[0] if isinstance(error, KeyError) and error.args \
        else error
    return f'{text} ({type(error).__name__})'


class ConfigOptions(DictAction):
    """``--cfg-options`` of a tool: changes of a config, by names with
    dots."""

    def __call__(self, parser, namespace, values, option_string=None):
        for each in values:
            if '=' not in each:
                raise argparse.ArgumentError(
                    self, f'{each!r} is no NAME=VALUE, as in '
                    'model.backbone.depth=18')
            # Of mmengine, they would become parts of themselves as text.
            if _DICT.search(each.partition('=')[2]):
                raise argparse.ArgumentError(
                    self, f'{each!r} has a dict: name its fields one by one, '
                    'as in custom_hooks.0.quantization.weight.bits=4')
        try:
            super().__call__(parser, namespace, values, option_string)
        except AssertionError as error:  # brackets
            raise argparse.ArgumentError(self, str(error)) from None


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config as the package's tools do.

    Raises:
        ValueError: The config does not build one.
    """
    from mmengine.registry import MODELS
    init_default_scope(scope_of(cfg))
    # Copies, because builders add defaults to what they get.
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor',
                         copy.deepcopy(cfg.data_preprocessor))
    try:
        return MODELS.build(model)
    except (KeyError, TypeError) as error:
        raise ValueError(f'{cfg.filename or "the config"} builds no model: '
                         f'{_in_words(error)}') from error


def image_channels(cfg: Config) -> int:
    """Channels of the images that a model takes: as the backbone says, or as
    many as means are taken from; 3 where neither is said."""
    model = cfg.get('model') or {}
    backbone = model.get('backbone')
    if isinstance(backbone, dict) and isinstance(
            backbone.get('in_channels'), int):
        return backbone['in_channels']
    for node in (model.get('data_preprocessor'), cfg.get('data_preprocessor')):
        if (node or {}).get('mean'):
            return len(node['mean'])
    return 3


def example_batch(scope: str, shape: Tuple[int, int], channels: int = 3
                  ) -> dict:
    """A batch of one random image for ``model.test_step``.

    Args:
        scope (str): mmdet, mmseg or mmpretrain.
        shape (tuple[int, int]): Height and width.
        channels (int): Channels of the image, see :func:`image_channels`.
            Defaults to 3.
    """
    structures = importlib.import_module(f'{scope}.structures')
    sample = getattr(structures, SAMPLES[scope])(metainfo=dict(
        img_shape=shape, ori_shape=shape, pad_shape=shape,
        batch_input_shape=shape, scale_factor=(1., 1.)))
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (channels, *shape), generator=generator,
                          dtype=torch.uint8)
    inputs = image[None] if scope == 'mmpretrain' else [image]
    return dict(inputs=inputs, data_samples=[sample])
