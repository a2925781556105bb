"""The tasks of the demo, their configs, and what ``--quick`` shortens."""
from dataclasses import dataclass
from typing import Dict

# The quantized models go on from the trained float one; the float reference
# goes on in the same way, so that a drop is not flattered by longer training.
START, FLOAT = 'start', 'float'
LABELS = {START: 'start', FLOAT: 'float', 'w4a4': '[4,4]', 'w2a4': '[2,4]',
          'w4a4-r8': '[4,4] r8'}  # residual sums at 8 bits
RUNS = tuple(LABELS)
QUANTIZED = RUNS[2:]
DEFAULT_RUNS = ('w4a4', 'w2a4')  # what else there is takes longer than a demo
QUICK_NOTE = ('--quick: a few iterations on a handful of images. These '
              'figures are no results.')


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        title (str): Model and dataset format.
        configs (dict[str, str]): Run -> config.
        folder (str): Its dataset, inside the data folder.
        metric (str): Name in the log of the test tool.
        metric_name (str): Name in the table.
        points (float): Factor that makes it points of 100.
        seconds (float): Duration of a training iteration on one core: the
            first guess of the remaining time, and of what to begin with.
    """
    title: str
    configs: Dict[str, str]
    folder: str
    metric: str
    metric_name: str
    points: float
    seconds: float


def _configs(stem, dataset):
    return {run: f'configs/{stem}_{part}{dataset}.py' for run, part in (
        (START, ''), (FLOAT, 'finetune_'),
        *((run, f'gdrq-{run}_') for run in QUANTIZED))}


TASKS = dict(
    det=Task(
        'Faster R-CNN, VOC format',
        _configs('faster_rcnn/faster-rcnn_r18-small_fpn', 'demo-voc'),
        'VOCdevkit', 'pascal_voc/mAP', 'mAP', 100., .28),
    seg=Task(
        'PSPNet, Cityscapes format',
        _configs('pspnet/pspnet_r18-small', 'demo-cityscapes'),
        'cityscapes', 'mIoU', 'mIoU', 1., .45),
    cls=Task(
        'ResNet-18, ImageNet format',
        _configs('resnet/resnet18-small', 'demo-imagenet'),
        'imagenet', 'accuracy/top1', 'top-1', 1., .09))

# Two epochs or iterations, so that there is one to be interrupted after.
_QUICK_EPOCHS = ['train_cfg.max_epochs=2', 'train_cfg.val_interval=2']
_QUICK_ITERS = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
_NO_WORKERS = [f'{split}_dataloader.{option}'
               for split in ('train', 'val', 'test')
               for option in ('num_workers=0', 'persistent_workers=False')]
QUICK_OPTIONS = {
    task: steps + ['default_hooks.logger.interval=1'] + _NO_WORKERS
    for task, steps in dict(det=_QUICK_EPOCHS, seg=_QUICK_ITERS,
                            cls=_QUICK_EPOCHS).items()}
