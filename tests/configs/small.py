"""The paper's configs on stand-in data, with nothing but sizes reduced."""
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from cells import architecture
from mmengine.config import Config
from mmengine.hub import get_config
from torch import nn

ROOT = Path(__file__).parents[2]
WIDTH = 16  # every number of channels is divided by it


def load(config: str) -> Config:
    """A config below configs/, or one of an mm package ('mmdet::...')."""
    return get_config(config) if '::' in config else Config.fromfile(
        ROOT / 'configs' / config)


def narrow_vgg(monkeypatch) -> None:
    """mmpretrain's VGG has no setting for its width."""
    from mmpretrain.models.backbones import vgg
    make = vgg.make_vgg_layer

    def make_narrow(in_channels, out_channels, *args, **kwargs):
        return make(in_channels if in_channels == 3 else in_channels // WIDTH,
                    out_channels // WIDTH, *args, **kwargs)

    def linear(inputs, outputs):
        return nn.Linear(inputs // WIDTH,
                         outputs // WIDTH if outputs == 4096 else outputs)

    monkeypatch.setattr(vgg, 'make_vgg_layer', make_narrow)
    monkeypatch.setattr(vgg, 'nn', SimpleNamespace(
        **{**vars(nn), 'Linear': linear}))


def shrink_model(config: str, cfg: Config) -> None:
    """Fewer channels; BN that runs without GPUs."""
    base = 64 // WIDTH
    options = {
        'resnet18': {'backbone.base_channels': base,
                     'backbone.stem_channels': base,
                     'head.in_channels': 512 // WIDTH},
        'vgg16bn': {},
        'resnet50': {'backbone.base_channels': base,
                     'backbone.stem_channels': base,
                     'head.in_channels': 2048 // WIDTH},
        'faster-rcnn': {
            'backbone.base_channels': base,
            'backbone.init_cfg': None,
            'neck.in_channels': [c // WIDTH for c in (256, 512, 1024, 2048)],
            'neck.out_channels': 256 // WIDTH,
            'rpn_head.in_channels': 256 // WIDTH,
            'rpn_head.feat_channels': 256 // WIDTH,
            'roi_head.bbox_roi_extractor.out_channels': 256 // WIDTH,
            'roi_head.bbox_head.in_channels': 256 // WIDTH,
            'roi_head.bbox_head.fc_out_channels': 1024 // WIDTH,
            'train_cfg.rpn_proposal.nms_pre': 40,
            'train_cfg.rpn_proposal.max_per_img': 16,
            'train_cfg.rcnn.sampler.num': 16},
        'pspnet': {
            'pretrained': None,
            'data_preprocessor.size': (48, 96),
            'backbone.base_channels': base,
            'backbone.stem_channels': base,
            'backbone.norm_cfg.type': 'BN',
            'decode_head.in_channels': 2048 // WIDTH,
            'decode_head.channels': 512 // WIDTH,
            'decode_head.norm_cfg.type': 'BN',
            'auxiliary_head.in_channels': 1024 // WIDTH,
            'auxiliary_head.channels': 256 // WIDTH,
            'auxiliary_head.norm_cfg.type': 'BN'},
    }[architecture(config)]
    cfg.merge_from_dict({f'model.{key}': value
                         for key, value in options.items()})


def make_data_roots(demo_data: Path, out: Path) -> dict:
    """Folders laid out as the real data sets, by their usual names."""
    voc = out / 'VOCdevkit'
    voc.mkdir()
    for year in ('VOC2007', 'VOC2012'):
        (voc / year).symlink_to(demo_data / 'VOCdevkit' / 'VOC2007')
    imagenet = out / 'imagenet'
    (imagenet / 'meta').mkdir(parents=True)
    train = demo_data / 'imagenet' / 'train'
    (imagenet / 'train').symlink_to(train)
    classes = sorted(path.name for path in train.iterdir())
    (imagenet / 'meta' / 'train.txt').write_text('\n'.join(
        f'{path.relative_to(train)} {classes.index(path.parent.name)}'
        for path in sorted(train.glob('*/*'))))
    cifar = out / 'cifar100' / 'cifar-100-python'
    cifar.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split in ('train', 'test'):
        content = dict(
            data=generator.integers(0, 256, (8, 3 * 32 * 32), np.uint8),
            fine_labels=list(range(8)))
        (cifar / split).write_bytes(pickle.dumps(content))
    return {'data/VOCdevkit/': str(voc) + '/',
            'data/cityscapes/': str(demo_data / 'cityscapes') + '/',
            'data/imagenet': str(imagenet),
            'data/cifar100': str(out / 'cifar100')}


def allow_small_cifar(monkeypatch) -> None:
    """mmpretrain knows the MD5 sums of the real files."""
    from mmpretrain.datasets import CIFAR100
    for name in ('train_list', 'test_list'):
        monkeypatch.setattr(CIFAR100, name, [
            [file, None] for file, _ in getattr(CIFAR100, name)])


def shrink_data(cfg: Config, roots: dict) -> None:
    """The same data sets and transforms, of few and small images."""
    cfg.train_dataloader.update(batch_size=2, num_workers=0,
                                persistent_workers=False)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    for dataset in datasets_of(cfg.train_dataloader.dataset):
        dataset.data_root = roots[dataset.data_root]
        dataset.indices = 2
        if 'min_size' in dataset.get('filter_cfg', ()):
            dataset.filter_cfg.update(min_size=8, bbox_min_size=4)
        for transform in dataset.pipeline:
            if transform.type in ('Resize', 'RandomResize'):
                transform.scale = (96, 64)
            elif transform.type == 'RandomCrop' and 'cat_max_ratio' in \
                    transform:
                transform.crop_size = (48, 96)
            elif transform.type == 'RandomResizedCrop':
                # VGG's classifier is made for 224 pixels.
                transform.scale = 224 if 'VGG' in str(cfg.model) else 32


def datasets_of(dataset) -> list:
    """The innermost datasets, none of them repeated."""
    if 'dataset' in dataset:
        dataset.times = 1  # of RepeatDataset
        return datasets_of(dataset.dataset)
    if 'datasets' in dataset:
        return [each for inner in dataset.datasets
                for each in datasets_of(inner)]
    return [dataset]


def shrink_schedule(cfg: Config) -> None:
    """Two epochs or iterations; what began at their end still does."""
    unit = 'epochs' if cfg.train_cfg.get('max_epochs') else 'iters'
    hook = (cfg.get('custom_hooks') or [{}])[-1]  # float ones have none
    begin = hook.get(f'begin_{unit[:-1]}', 0)
    if begin:
        end = begin == cfg.train_cfg[f'max_{unit}']
        hook[f'begin_{unit[:-1]}'] = 2 if end else 1
    cfg.train_cfg[f'max_{unit}'] = 2
    cfg.train_cfg.pop('val_interval')
    cfg.default_hooks.logger.interval = 1


@torch.no_grad()
def check_levels(layer, phase: str) -> None:
    """Brute force: how many values the weights of a group take."""
    quantizer = layer.weight_quantizer
    weight = layer.quantized_weight()
    size = quantizer.group_size
    groups = [weight] if size == -1 else weight.split(size)
    levels = max(2, 2**quantizer.bits - 1)
    most = max(group.unique().numel() for group in groups)
    if phase == 'quantize':
        assert most <= levels
    else:
        assert torch.equal(weight, layer.weight)
