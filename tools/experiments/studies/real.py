"""Real data: a classifier, a detector and a segmentor at low bits.

The classifier is trained from scratch; detector and segmentor begin with its
backbone. All quantized models of all seeds begin with one float model, which
is published in model_zoo/, and are compared with a float model that was
fine-tuned alike, of their seed.
"""
from dataclasses import dataclass, field
from typing import Dict, Optional, Tuple

from ..cells import Claim, Row, Study
from .common import FAMILIES, STUDIES, add, columns, hook

PAIRS = ((4, 4), (2, 4), (2, 2))
GOALS = {(4, 4): .3, (2, 4): .9}
# Those of seed 0 began with a start that is no longer published.
FIRST_SEED = 1
CLS_ENDS = ('backbone.conv1', 'head.fc')
CLS_PAPER = {(2, 2): '4.2', (2, 4): '0.9', (4, 4): '0.3', (2, 8): '0.3'}


@dataclass(frozen=True)
class Task:
    """What is trained on one data set.

    Args:
        config (str): Path, with room for what is special of it.
        metric (str): Its name.
        ends (tuple[str]): First and last layers, at 8 bits.
        more (tuple): Bit pairs of the paper's tables beside ``PAIRS``.
        paper (dict): Pair -> drop of the paper, of its own model and data.
    """
    config: str
    metric: str
    ends: Tuple[str, ...]
    more: tuple = ()
    paper: Optional[Dict[Tuple[int, int], str]] = None


TASKS = dict(
    tiny=Task('configs/resnet/resnet18-w24_{}tiny-imagenet-100.py', 'top-1',
              CLS_ENDS, ((2, 8), (3, 3))),
    bccd=Task('configs/faster_rcnn/faster-rcnn_r18-w24_fpn_{}bccd.py', 'mAP',
              ('backbone.conv1', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg',
               'roi_head.bbox_head.fc_*'), ((5, 8), (4, 8), (3, 3)),
              {(4, 4): '0.5', (2, 4): '0.7'}),
    camvid=Task('configs/pspnet/pspnet_r18-w24-d8_{}camvid.py', 'mIoU',
                ('backbone.conv1', 'decode_head.conv_seg'),
                ((8, 8), (4, 8), (3, 3)), {(4, 4): '0.0', (2, 4): '0.9'}))
# One seed each.
OTHERS = dict(
    tiny50=Task('configs/resnet/resnet50-w24_{}tiny-imagenet-100.py', 'top-1',
                CLS_ENDS, paper=CLS_PAPER),
    tinyvgg=Task('tools/experiments/configs/vgg16bn_{}tiny.py', 'top-1',
                 ('backbone.features.0.conv', 'head.fc'),
                 paper={**CLS_PAPER, (2, 2): '2.8', (4, 4): '0.1'}))


@dataclass(frozen=True)
class Method:
    """A way to train at low bits.

    Args:
        suffix (str): What the names of its cells end in.
        weight (dict): Fields beside the bits.
        activation (dict): Fields beside the bits.
        hook (dict): Arguments of the hook.
    """
    suffix: str
    weight: dict
    activation: dict
    hook: dict = field(default_factory=dict)


# The defaults but for the threshold, which was a mean of non-zeros.
NONZERO = dict(weight=dict(type='ScaleClip', group_size=4, levels='even'),
               activation=dict(type='ScaleClip', threshold='nonzero'))
# Label, with the levels of weights.
METHODS = {
    'GDRQ as published (levels: 15 at 4 bits, 7 at 3, 3 at 2)': Method(
        'gdrq', dict(type='ScaleClip', group_size=4, k=2.),
        dict(type='ScaleClip')),
    # k = 2 clips weights of 4 and 8 bits, first and last layers among them.
    'GDRQ by its defaults (levels: 15, 8 and 4)': Method(
        'mse', NONZERO['weight'], dict(type='ScaleClip', threshold='mse')),
    'the same, thresholds of non-zeros (levels: 15, 8 and 4)': Method(
        'bestk', **NONZERO),
    'and distilled (levels: 15, 8 and 4)': Method(
        'distilled', **NONZERO, hook=dict(distill=dict())),
    'LSQ, a step a channel (levels: 16, 8 and 4)': Method(
        'lsq', dict(type='LSQ', group_size=1), dict(type='LSQ'))}
# Other papers', of one seed; a scale a layer, as they have.
DEFAULTS = next(each for each in METHODS.values() if each.suffix == 'mse')
BASELINES = {name: Method(name.lower(), dict(type=name), dict(type=name))
             for name in ('LSQPlus', 'PACT', 'DoReFa')}


def bits(pair) -> str:
    return 'w{}a{}'.format(*pair)


def chain(family: str, task: Task) -> str:
    """Start and float model of a task."""
    backbone = 'tiny/start' if family in ('bccd', 'camvid') else None
    start = add(f'{family}/start', task.config.format(''), start=backbone,
                shared=True)
    return add(f'{family}/float', task.config.format('finetune_'),
               start=start)


def options(task: Task, method: Method, pair) -> dict:
    """The option that quantizes, first and last layers at 8 bits."""
    return hook(dict(method.weight, bits=pair[0]),
                dict(method.activation, bits=pair[1]), ends(task),
                **method.hook)


def ends(task: Task) -> list:
    """Rules: first and last layers at 8 bits."""
    return [dict(match=end, weight=dict(bits=8), activation=dict(bits=8))
            for end in task.ends]


def quantized(family: str, task: Task, method: Method, pair) -> str:
    """A model that begins with the start of its task, trained as ``float``."""
    return add(f'{family}/{method.suffix}-{bits(pair)}',
               task.config.format('finetune_'),
               options=options(task, method, pair), start=f'{family}/start',
               reference=f'{family}/float')


def methods_study(family: str, task: Task, methods=METHODS, pairs=PAIRS,
                  seeds=3) -> Study:
    """Methods, LSQ and GDRQ's defaults among them, at some bit pairs."""
    floating = chain(family, task)
    rows, cells = [], {}
    for label, method in methods.items():
        names = cells[method.suffix] = [
            quantized(family, task, method, pair) for pair in pairs]
        rows += [Row(f'{label}: {task.metric}', names, 'metric'),
                 Row('drop', names, paper=[
                     task.paper.get(pair, '') for pair in pairs] if task.paper
                     and method.weight['type'] == 'ScaleClip' else ())]
    # What stands for the paper's GDRQ comes first.
    ours = {words: cells[suffix] for words, suffix in (
        ('as published', 'gdrq'), ('by its defaults', 'mse'))
        if suffix in cells}
    words, names = next(iter(ours.items()))
    claims = [Claim('goal: a drop at [{},{}] of at most {}'.format(
        *pair, GOALS[pair]), limits={name: GOALS[pair]})
        for pair, name in zip(pairs, cells['mse']) if pair in GOALS]
    claims += [Claim('the paper: GDRQ {} loses at most {}, [{},{}]'.format(
        words, task.paper[pair], *pair),
        limits={name: float(task.paper[pair])})
        for pair, name in zip(pairs, names) if pair in (task.paper or {})]
    for words, names in ours.items():
        claims += [Claim(f'GDRQ {words} loses less than LSQ, {pair}',
                         better=[(name, theirs)]) for pair, name, theirs
                   in zip(columns(pairs), names, cells['lsq'])]
    return Study(
        FAMILIES[family].title, '', columns(pairs),
        [Row(f'float start: {task.metric}', [f'{family}/start'], 'metric'),
         Row(f'float, fine-tuned alike: {task.metric}', [floating], 'metric'),
         *rows], claims, seeds, FIRST_SEED)


def more_study(family: str, task: Task) -> Study:
    """Other bit pairs, and no training at all; one seed."""
    method, start = next(iter(METHODS.values())), f'{family}/start'
    trained = [quantized(family, task, method, pair) for pair in task.more]
    untrained = ((8, 8), (4, 4))
    calibrated = [add(
        f'{family}/calibrated-{bits(pair)}', task.config.format('finetune_'),
        options=options(task, method, pair), start=start, reference=start,
        kind='calibrate') for pair in untrained]
    return Study(
        f'{FAMILIES[family].title}: other bits, and calibration alone',
        f'drop of {task.metric}', [*columns(task.more), *(
            f'{name}, not trained' for name in columns(untrained))],
        [Row('GDRQ as published (levels: 2^bits - 1)',
             [*trained, *calibrated])], seeds=1,
        first_seed=FIRST_SEED)


def baselines_study(family: str, task: Task) -> Study:
    """What other papers propose; one seed."""
    return Study(
        f'{FAMILIES[family].title}: other papers\' quantizers',
        f'drop of {task.metric}', columns(PAIRS),
        [Row(f'{name} (levels: 16 and 4)',
             [quantized(family, task, method, pair) for pair in PAIRS])
         for name, method in BASELINES.items()],
        seeds=1, first_seed=FIRST_SEED)


def groups_study() -> Study:
    """Tables 1 and 2: weights of convolutions alone, at 2 bits."""
    sizes = (1, 4, 16, -1)
    skip = [dict(match='head.fc', skip=True)]

    def cells(name, **weight):
        return [add(f'tiny/{name}-w2-{"layer" if size == -1 else size}',
                    TASKS['tiny'].config.format('finetune_'), options=hook(
                        dict(bits=2, group_size=size, k=2., **weight),
                        rules=skip), start='tiny/start',
                    reference='tiny/float') for size in sizes]

    grouped = cells('group', clip='search', projection=False)
    reshaped = cells('reshape')
    return Study(
        'ResNet-18, Tiny-ImageNet-100: Tables 1 and 2, 2-bit weights alone, '
        'three levels',
        'drop of top-1', [f'gs = {size}' for size in sizes], [
            Row('groups (Table 1)', grouped,
                paper=['1.7', '3.5', '4.9', '8.1']),
            Row('groups and reshaping (Table 2)', reshaped,
                paper=['0.1'] * 4)],
        [Claim('reshaping loses less than groups alone',
               better=list(zip(reshaped, grouped)))], seeds=1,
        first_seed=FIRST_SEED)


for family, task in TASKS.items():
    STUDIES[f'real_{family}'] = methods_study(family, task)
for family, task in TASKS.items():
    STUDIES[f'real_{family}_more'] = more_study(family, task)
    STUDIES[f'real_{family}_baselines'] = baselines_study(family, task)
for family, task in OTHERS.items():
    STUDIES[f'real_{family}'] = methods_study(
        family, task, {label: method for label, method in METHODS.items()
                       if method.suffix in ('mse', 'lsq')},
        ((4, 4), (2, 8), (2, 4), (2, 2)), seeds=1)
STUDIES['real_groups'] = groups_study()
