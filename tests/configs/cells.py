"""Every cell of the paper's Tables 1 to 6, typed in from the paper."""
from dataclasses import dataclass
from typing import Optional, Tuple


@dataclass(frozen=True)
class Cell:
    """One quantized or reshaped cell.

    Args:
        table (int): Of the paper.
        config (str): Below configs/.
        bits (tuple): Of weights and activations; None: float.
        group_size (int): Filters a group.
        start (str, optional): Config of the model that ``load_from`` names.
        reshaped (bool): A float model, reshaped only.
        staged (bool): Reshaped first, in the same training.
    """
    table: int
    config: str
    bits: Tuple[int, Optional[int]]
    group_size: int
    start: Optional[str] = None
    reshaped: bool = False
    staged: bool = False


# Layers at 8 bits, and layers in all.
FIRST_AND_LAST = {
    'resnet18': (),
    'vgg16bn': ('backbone.features.0.conv', 'backbone.classifier.6'),
    'resnet50': ('backbone.conv1', 'head.fc'),
    'faster-rcnn': ('backbone.conv1', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg',
                    'roi_head.bbox_head.fc_cls',
                    'roi_head.bbox_head.fc_reg'),
    'pspnet': ('backbone.stem.0', 'decode_head.conv_seg',
               'auxiliary_head.conv_seg')}
NUM_LAYERS = {'resnet18': 21, 'vgg16bn': 16, 'resnet50': 54,
              'faster-rcnn': 53 + 8 + 3 + 4, 'pspnet': 55 + 6 + 2}
SKIPPED = {'resnet18': ('head.fc', )}

# Where the float cells of tables 5 and 6, and the starts of 3 to 6, are from.
VGG = 'mmpretrain::vgg/vgg16bn_8xb32_in1k.py'
RESNET_50 = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
FASTER_RCNN = 'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py'
PSPNET = 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'
FLOAT_CIFAR = 'resnet/resnet18_cifar100.py'


def _cells():
    for size, name in ((1, 'g1'), (4, 'g4'), (16, 'g16'), (-1, 'layer')):
        stem = 'resnet/resnet18_{}-' + f'{name}_cifar100.py'
        reshaped = stem.format('reshape')
        yield Cell(1, stem.format('group-w2'), (2, None), size, FLOAT_CIFAR)
        yield Cell(2, reshaped, (2, None), size, None, reshaped=True)
        yield Cell(2, stem.format('gdrq-w2'), (2, None), size, reshaped)
        yield Cell(2, stem.format('gdrq-w1'), (1, None), size, reshaped)
    for table, stem, start in ((3, 'vgg/vgg16bn', VGG),
                               (4, 'resnet/resnet50', RESNET_50)):
        reshaped = f'{stem}_reshape_in1k.py'
        yield Cell(table, reshaped, (4, 4), 4, start, reshaped=True)
        for bits in ((2, 2), (2, 4), (4, 4), (2, 8)):
            yield Cell(table, f'{stem}_gdrq-w{bits[0]}a{bits[1]}_in1k.py',
                       bits, 4, reshaped)
    for table, stem, data, start, all_bits in (
            (5, 'faster_rcnn/faster-rcnn_r50_fpn', 'voc0712', FASTER_RCNN,
             ((5, 8), (4, 8), (4, 4), (2, 4))),
            (6, 'pspnet/pspnet_r50-d8', 'cityscapes', PSPNET,
             ((8, 8), (4, 8), (4, 4), (2, 4)))):
        for bits in all_bits:
            yield Cell(table, f'{stem}_gdrq-w{bits[0]}a{bits[1]}_{data}.py',
                       bits, 4, start, staged=True)


CELLS = list(_cells())


def architecture(config: str) -> str:
    """Which of the five architectures a config is about."""
    return next(name for name in NUM_LAYERS
                if config.rpartition('/')[2].startswith(name))
