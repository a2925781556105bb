"""Tables 3 to 6: four architectures at the bit pairs of the paper."""
from ..cells import Claim, Row, Study
from .common import (
    FAMILIES,
    STUDIES,
    add,
    at_8_bits,
    columns,
    finetune,
    hook,
)

# Of the demo's models; tools/analyze.py ends names them.
FIRST_AND_LAST = dict(
    det=('backbone.conv1', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg',
         'roi_head.bbox_head.fc_*'),
    seg=('backbone.stem.0', 'decode_head.conv_seg'))


def table(number, family, pairs, limits, float_paper, paper) -> None:
    """Bit pairs of one architecture: metric and drop.

    Args:
        number (int): Number of the paper's table.
        family (str): Family of cells that are there already.
        pairs (sequence): Bits of weights and activations.
        limits (dict): Pair -> drop that is the goal.
        float_paper (str): The paper's float metric.
        paper (sequence[str]): The paper's drops.
    """
    cells = [f'{family}/w{w}a{a}' for w, a in pairs]
    metric = dict(cls='top-1', det='mAP', seg='mIoU')[FAMILIES[family].task]
    STUDIES[f'table{number}'] = Study(
        f'Table {number}: {FAMILIES[family].title}', '',
        ['float', *columns(pairs)], [
            Row(metric, [f'{family}/float', *cells], 'metric'),
            Row('drop', [None, *cells], paper=[float_paper, *paper])],
        [Claim('goal: a drop at [{},{}] of at most {}'.format(
            *pair, limit), limits={f'{family}/w{pair[0]}a{pair[1]}': limit})
         for pair, limit in limits.items()])


for family in ('vgg16bn', 'resnet50'):
    config = f'tools/experiments/configs/{family}_signs.py'
    ends = at_8_bits('backbone.features.0.conv' if family == 'vgg16bn'
                     else 'backbone.conv1', 'head.fc')
    start = add(f'{family}/start', config)
    add(f'{family}/float', config, options=finetune(), start=start)
    for w, a in ((2, 2), (2, 4), (4, 4), (2, 8)):
        add(f'{family}/w{w}a{a}', config, options={
            **finetune(), **hook(dict(bits=w), dict(bits=a), ends)},
            start=start, reference=f'{family}/float')
CLS_PAIRS, CLS_GOALS = ((2, 2), (2, 4), (4, 4), (2, 8)), {
    (2, 4): .9, (4, 4): .3}
table(3, 'vgg16bn', CLS_PAIRS, CLS_GOALS, 'float 72.6',
      ['2.8', '0.9', '0.1', '0.3'])
table(4, 'resnet50', CLS_PAIRS, CLS_GOALS, 'float 74.8',
      ['4.2', '0.9', '0.3', '0.3'])

for family, stem, data, other in (
        ('det', 'faster_rcnn/faster-rcnn_r18-small_fpn', 'demo-voc', 5),
        ('seg', 'pspnet/pspnet_r18-small', 'demo-cityscapes', 8)):
    config = f'configs/{stem}_{{}}{data}.py'
    start = add(f'{family}/start', config.format(''), demo=f'{family}/start')
    add(f'{family}/float', config.format('finetune_'), start=start,
        demo=f'{family}/float')
    for run in ('w4a4', 'w2a4'):
        add(f'{family}/{run}', config.format(f'gdrq-{run}_'), start=start,
            reference=f'{family}/float', demo=f'{family}/{run}')
    for w in (other, 4):
        where = 'custom_hooks.0.quantization'
        add(f'{family}/w{w}a8', config.format('gdrq-w4a4_'), options={
            f'{where}.weight.bits': w, f'{where}.activation.bits': 8},
            start=start, reference=f'{family}/float')
table(5, 'det', ((5, 8), (4, 8), (4, 4), (2, 4)),
      {(4, 4): .5, (2, 4): .7}, 'float 79.0', ['0.0', '0.2', '0.5', '0.7'])
table(6, 'seg', ((8, 8), (4, 8), (4, 4), (2, 4)),
      {(4, 4): .2, (2, 4): .9}, 'float 75.6', ['-0.1', '0.3', '0.0', '0.9'])
