"""Models and batches that the benchmarks train: OpenMMLab's own configs."""
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Callable, Optional, Tuple

import torch
from mmengine.hub import get_config
from torch import nn

from gdrq_mm.openmmlab.scopes import build_model, scope_of


@dataclass
class Workload:
    """A model and what it is trained on.

    Args:
        config (str): Config of an mm package.
        shape (tuple[int, int]): Height and width of the images.
        batch (int): Images a step.
        stem (str): Pattern of the first convolution, which stays float in
            all rows: so do the peers' recipes have it.
        changes (dict): Merged over the config.
        threads (int): Threads of the CPU.
        rounds (int): Steps a row that are timed.
    """
    config: str
    shape: Tuple[int, int]
    batch: int
    stem: str
    changes: dict
    threads: int = 2
    rounds: int = 11

    def build(self) -> nn.Module:
        cfg = get_config(self.config)
        cfg.merge_from_dict({'model.backbone.init_cfg': None, **self.changes})
        torch.manual_seed(0)
        model = build_model(cfg)
        model.scope = scope_of(cfg)
        return model.train()

    def make_batch(self, scope: str) -> dict:
        """A random batch for ``model.data_preprocessor``."""
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (self.batch, 3, *self.shape),
                               generator=generator, dtype=torch.uint8)
        samples = [SAMPLES[scope](self.shape, generator)
                   for _ in range(self.batch)]
        return dict(inputs=images if scope == 'mmpretrain' else list(images),
                    data_samples=samples)


def _class_sample(shape, generator):
    from mmpretrain.structures import DataSample
    return DataSample().set_gt_label(
        int(torch.randint(0, 1000, (1, ), generator=generator)))


def _box_sample(shape, generator):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    height, width = shape
    corners = torch.rand(4, 2, generator=generator) * .6
    sizes = .2 + .2 * torch.rand(4, 2, generator=generator)
    boxes = torch.cat([corners, corners + sizes], 1) * torch.tensor(
        [width, height, width, height])
    sample = DetDataSample(metainfo=dict(
        img_shape=shape, ori_shape=shape, pad_shape=shape,
        batch_input_shape=shape, scale_factor=(1., 1.)))
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.randint(0, 80, (4, ), generator=generator))
    return sample


def _map_sample(shape, generator):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    sample = SegDataSample(metainfo=dict(
        img_shape=shape, ori_shape=shape, pad_shape=shape))
    sample.gt_sem_seg = PixelData(data=torch.randint(
        0, 19, (1, *shape), generator=generator))
    return sample


SAMPLES = dict(mmpretrain=_class_sample, mmdet=_box_sample, mmseg=_map_sample)

WORKLOADS = {
    'resnet18': Workload(
        'mmpretrain::resnet/resnet18_8xb32_in1k.py', (64, 64), 8,
        'backbone.conv1', {}, threads=1, rounds=31),
    'resnet50': Workload(
        'mmpretrain::resnet/resnet50_8xb32_in1k.py', (224, 224), 8,
        'backbone.conv1', {}),
    'faster_rcnn': Workload(
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', (192, 192), 2,
        'backbone.conv1',
        {'model.train_cfg.rcnn.sampler.num': 64,
         # Else RoIAlign, most of the time on a CPU, costs what the boxes
         # ask for that an untrained model happens to propose.
         'model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio': 2,
         'model.backbone.frozen_stages': -1,
         'model.backbone.norm_eval': False}),
    'pspnet': Workload(
        'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        (128, 128), 2, 'backbone.stem.0',
        {'model.pretrained': None, 'model.backbone.norm_cfg.type': 'BN',
         'model.decode_head.norm_cfg.type': 'BN',
         'model.auxiliary_head.norm_cfg.type': 'BN',
         'model.data_preprocessor.size': (128, 128)})}


def forward_in(model: nn.Module, autocast: Optional[str]):
    """Context of a forward: that of ``AmpOptimWrapper``, or none."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, getattr(torch, autocast)) \
        if autocast else nullcontext()


def training_step(model: nn.Module, batch: dict,
                  autocast: Optional[str] = None) -> Callable[[], None]:
    """One step of training, whatever the model is made of by now."""
    device = next(model.parameters()).device
    model.data_preprocessor.to(device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=.9)

    def step():
        data = model.data_preprocessor(batch, True)
        with forward_in(model, autocast):
            losses = model(**data, mode='loss')
        loss, _ = model.parse_losses(losses) if hasattr(
            model, 'parse_losses') else (losses, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def evaluation_step(model: nn.Module, batch: dict,
                    autocast: Optional[str] = None) -> Callable[[], None]:
    """The forward of an evaluation, without post-processing."""
    data = model.data_preprocessor(batch, False)

    @torch.no_grad()
    def step():
        with forward_in(model, autocast):
            model(**data, mode='tensor')

    return step
