"""Every training experiment: its models, its table, what it is to show.

Classification is on the stand-in "signs" (100 classes, 32x32). Chains of
trainings are as long for a model as for the float model that it is compared
with: start -> float -> quantized against start -> float -> float, or start ->
quantized against start -> float.
"""
from .cells import Cell, Claim, Family, Row, Study

FAMILIES = dict(
    resnet18=Family('ResNet-18, 100 signs', 'cls', 'signs'),
    vgg16bn=Family('VGG-16-BN, 100 signs', 'cls', 'signs'),
    resnet50=Family('ResNet-50, 100 signs', 'cls', 'signs'),
    det=Family('Faster R-CNN, VOC format', 'det', 'VOCdevkit'),
    seg=Family('PSPNet, Cityscapes format', 'seg', 'cityscapes'))
CELLS, STUDIES = {}, {}
GROUP_SIZES = {'1': 1, '4': 4, '16': 16, 'layer': -1}
PAIRS = ((2, 2), (2, 4), (4, 4))
ITERS = 150  # of a fine-tuning


def add(name, config, **fields) -> str:
    assert name not in CELLS, name
    CELLS[name] = Cell(name, config, **fields)
    return name


def finetune(iters=ITERS, lr=2e-3) -> dict:
    """The schedule that follows the training from scratch."""
    return {
        'train_cfg.max_iters': iters,
        'optim_wrapper.optimizer.lr': lr,
        'optim_wrapper.optimizer.weight_decay': .01,
        'param_scheduler': [
            dict(type='LinearLR', start_factor=.05, by_epoch=False, begin=0,
                 end=15),
            dict(type='CosineAnnealingLR', eta_min=lr / 100, begin=15,
                 end=iters, by_epoch=False)]}


def hook(weight, activation=None, rules=(), **arguments) -> dict:
    """The option that quantizes."""
    quantization = dict(weight=weight, rules=list(rules))
    if activation:
        quantization['activation'] = activation
    return dict(custom_hooks=[dict(
        type='GDRQHook', quantization=quantization, **arguments)])


def at_8_bits(*names) -> list:
    # k by the bits of these layers, whatever that of the others is.
    return [dict(match=name, weight=dict(bits=8),
                 activation=dict(bits=8, k=None)) for name in names]


# -- ResNet-18: Tables 1 and 2, Fig. 8 ----------------------------------------

RESNET18 = 'tools/experiments/configs/resnet18_signs.py'
# The paper quantizes "all convolutional layer's weights", nothing else.
CONVOLUTIONS = [dict(match='head.fc', skip=True)]
FLOAT, LONGER = 'resnet18/float', 'resnet18/float-longer'
add('resnet18/start', RESNET18)
add(FLOAT, RESNET18, options=finetune(), start='resnet18/start')
add(LONGER, RESNET18, options=finetune(), start=FLOAT)


def resnet18(name, options, start=FLOAT, reference=LONGER, **fields):
    return add(f'resnet18/{name}', RESNET18, options={
        **finetune(), **options}, start=start, reference=reference, **fields)


def weights_only(bits, **weight) -> dict:
    return hook(dict(bits=bits, **weight), rules=CONVOLUTIONS)


def reshaped(**weight) -> dict:
    """A float model whose weights are reshaped: rounding never begins."""
    return hook(dict(bits=2, **weight), rules=CONVOLUTIONS, begin_iter=ITERS)


for label, size in GROUP_SIZES.items():
    resnet18(f'reshape-{label}', reshaped(group_size=size),
             start='resnet18/start', reference=FLOAT)
    for bits in (2, 1):
        for kind, scheme, start in (
                ('group', dict(clip='search', projection=False), FLOAT),
                ('gdrq', {}, f'resnet18/reshape-{label}')):
            options = weights_only(bits, group_size=size, **scheme)
            resnet18(f'{kind}-w{bits}-{label}-before', options, start,
                     FLOAT, kind='test')
            if bits == 2:
                resnet18(f'{kind}-w2-{label}-bn', options, start, FLOAT,
                         kind='calibrate', latent=True)
            resnet18(f'{kind}-w{bits}-{label}', options, start)


def by_group(stem, suffix='') -> list:
    return [f'resnet18/{stem}-{label}{suffix}' for label in GROUP_SIZES]


def falling(names) -> list:
    """Pairs of neighbours, the first one of each better."""
    return list(zip(names, names[1:]))


SIZES = [f'gs = {size}' for size in GROUP_SIZES.values()]
STUDIES['table1'] = Study(
    'Table 1: group-based quantization of weights, not reshaped',
    'drop of top-1', ['float', *SIZES], [
        Row('top-1 before fine-tuning', [FLOAT], 'metric'),
        Row('2 bits, before', [None, *by_group('group-w2', '-before')],
            paper=['', '3.7', '23', '53', '72']),
        Row('2 bits, before, batch normalization recalibrated',
            [None, *by_group('group-w2', '-bn')]),
        Row('1 bit, before', [None, *by_group('group-w1', '-before')]),
        Row('top-1 after fine-tuning', [LONGER], 'metric'),
        Row('2 bits, after', [None, *by_group('group-w2')],
            paper=['', '1.7', '3.5', '4.9', '8.1']),
        Row('1 bit, after', [None, *by_group('group-w1')])],
    [Claim('"low-bit models achieve better performance with group-size '
           'decreasing", before fine-tuning',
           better=falling(by_group('group-w2', '-before'))),
     Claim('the same with batch normalization recalibrated',
           better=falling(by_group('group-w2', '-bn'))),
     Claim('the same after fine-tuning', better=falling(
         by_group('group-w2'))),
     Claim('after fine-tuning gs = 1 loses "less than 1%" (its table: 1.7)',
           limits={'resnet18/group-w2-1': 1.7})])
STUDIES['table2'] = Study(
    'Table 2: the same with reshaping (GDRQ)',
    'drop of top-1', ['float', *SIZES], [
        Row('float, reshaped', [FLOAT, *by_group('reshape')], 'metric',
            paper=['73', '73', '73', '73', '73']),
        Row('2 bits, before', [None, *by_group('gdrq-w2', '-before')]),
        Row('2 bits, before, batch normalization recalibrated',
            [None, *by_group('gdrq-w2', '-bn')]),
        Row('1 bit, before', [None, *by_group('gdrq-w1', '-before')]),
        Row('top-1 after fine-tuning', [LONGER], 'metric'),
        Row('2 bits, after', [None, *by_group('gdrq-w2')],
            paper=['', '0.1', '0.1', '0.1', '0.1']),
        Row('1 bit, after', [None, *by_group('gdrq-w1')],
            paper=['', '1.6', '1.4', '1.4', '1.7'])],
    [Claim('"applying the Distribution Reshaping on group filters doesn\'t '
           'affect the [float] model\'s performance"',
           equal=[(name, FLOAT) for name in by_group('reshape')]),
     Claim('"all 2-bit ResNet-18 have little accuracy drop" (0.1)',
           limits=dict.fromkeys(by_group('gdrq-w2'), .1)),
     Claim('2 bits: reshaped models lose less than those that were not '
           '(Table 2 against Table 1), before fine-tuning',
           better=[*zip(by_group('gdrq-w2', '-before'),
                        by_group('group-w2', '-before'))]),
     Claim('the same after fine-tuning', better=[
         *zip(by_group('gdrq-w2'), by_group('group-w2'))]),
     Claim('1 bit, after fine-tuning: "small group size is not always '
           'better": gs = 4 better than gs = 1',
           better=[('resnet18/gdrq-w1-4', 'resnet18/gdrq-w1-1')]),
     Claim('1 bit: "group-based quantization also achieves better '
           'performance": gs = 4 and 16 better than gs = -1',
           better=[('resnet18/gdrq-w1-4', 'resnet18/gdrq-w1-layer'),
                   ('resnet18/gdrq-w1-16', 'resnet18/gdrq-w1-layer')])])

KS, ALL_BITS = ('2', '2.5', '3', '4', 'inf'), (2, 4, 3, 8, 5, 6, 7)


def fig8(k, bits) -> str:
    return f'resnet18/fig8-k{k}-w{bits}'


for k in KS[1:-1]:
    resnet18(f'reshape-k{k}', reshaped(group_size=-1, k=float(k)),
             start='resnet18/start', reference=FLOAT)
for bits in ALL_BITS:
    for k in KS:
        resnet18(f'fig8-k{k}-w{bits}', weights_only(
            bits, group_size=-1, clip='search', **(
                dict(projection=False) if k == 'inf' else dict(k=float(k)))),
            start={'2': 'resnet18/reshape-layer', 'inf': FLOAT}.get(
                k, f'resnet18/reshape-k{k}'))
STUDIES['fig8'] = Study(
    'Fig. 8 (b): accuracy by k and bits, quantized by layer, fine-tuned',
    'drop of top-1', [f'{bits} bits' for bits in sorted(ALL_BITS)],
    [Row(f'k = {k}', [fig8(k, bits) for bits in sorted(ALL_BITS)])
     for k in KS],
    [Claim(f'"k = 2 promotes the low-bit model to achieve better final '
           f'performance", {bits} bits',
           better=[(fig8('2', bits), fig8(k, bits)) for k in KS[1:]])
     for bits in (2, 3, 4)])

# -- ResNet-18: what the choices cost, weights and activations ----------------

ENDS = at_8_bits('backbone.conv1', 'head.fc')


def choice(name, pair, weight={}, activation={}, start=FLOAT,
           reference=LONGER, rules=ENDS, schedule={}, **arguments) -> str:
    return add(
        f'resnet18/{name}-w{pair[0]}a{pair[1]}', RESNET18,
        options={**finetune(**schedule), **hook(
            dict(bits=pair[0], **weight), dict(bits=pair[1], **activation),
            rules, **arguments)}, start=start, reference=reference)


def base(pair) -> str:
    return f'resnet18/base-w{pair[0]}a{pair[1]}'


def columns(pairs) -> list:
    return ['[{},{}]'.format(*pair) for pair in pairs]


def variants(name, title, rows, pairs=PAIRS) -> None:
    """A study of variants of the default, a row each.

    Args:
        name (str): Of the study.
        title (str): The same.
        rows (dict[str, list[str]]): Label -> cells.
        pairs (sequence): Bits of the columns.
    """
    default = [base(pair) for pair in pairs]
    claims = [Claim(f'the default is better than {label}', better=[
        (ours, theirs) for ours, theirs in zip(default, cells)
        if theirs and CELLS[theirs].reference == LONGER])
        for label, cells in rows.items()]
    STUDIES[name] = Study(
        title, 'drop of top-1', columns(pairs), [
            Row('**default**', default),
            *(Row(label, cells) for label, cells in rows.items())],
        [claim for claim in claims if claim.better])


for pair in (*PAIRS, (4, 2), (4, 8)):
    choice('base', pair)
variants('choices', 'How reshaping and rounding are done', {
    label: [choice(name, pair, **fields) for pair in PAIRS]
    for label, name, fields in (
        ("site='relu'", 'relu', dict(activation=dict(site='relu'))),
        ('clip in the forward (projection=False)', 'forward',
         dict(weight=dict(projection=False))),
        ("clip='search', projected", 'search', dict(
            weight=dict(clip='search'))),
        ("clip='search', projection=False", 'search-forward', dict(
            weight=dict(clip='search', projection=False))),
        ('staged: from a reshaped model', 'staged', dict(
            start='resnet18/reshape-4')),
        ('staged: first half of the training', 'halves', dict(
            begin_iter=ITERS // 2)))})
variants('group_size', 'Group size, weights and activations', {
    f'group_size={size}': [
        choice(f'gs{label}', pair, weight=dict(group_size=size))
        for pair in PAIRS]
    for label, size in GROUP_SIZES.items() if size != 4})
variants('k', 'k of weights', {
    f'k={k}': [choice(f'k{k}', pair, weight=dict(k=float(k)))
               for pair in PAIRS] for k in KS[1:-1]})
# Defaults of unsigned inputs: 4.9, 7.3 and 10.5 at 2, 4 and 8 bits.
DEFAULT_K_A = {2: 4.9, 4: 7.3, 8: 10.5}
variants('k_a', 'k_a of activations, weights at 4 bits', {
    f'{factor} of the default': [
        choice(f'ka{factor}', (4, bits), activation=dict(
            k=round(factor * k, 2))) for bits, k in DEFAULT_K_A.items()]
    for factor in (.35, .5, .7, 1.4, 2)}, [(4, bits) for bits in DEFAULT_K_A])

TRIED = ((2, 4), (4, 4))
TWICE = add('resnet18/float-twice', RESNET18, options=finetune(2 * ITERS),
            start=FLOAT)
for lr in (1e-3, 4e-3):
    add(f'resnet18/float-lr{lr}', RESNET18, options=finetune(lr=lr),
        start=FLOAT)
add('resnet18/from-w4a4-w2a4', RESNET18, options=CELLS[
    'resnet18/base-w2a4'].options, start='resnet18/base-w4a4',
    reference=TWICE, latent=True)
variants('tries', 'What could make the drop smaller', {
    label: [choice(name, pair, **fields) for pair in TRIED]
    for label, name, fields in (
        ('twice as long', 'long', dict(
            schedule=dict(iters=2 * ITERS), reference=TWICE)),
        ('half the learning rate', 'lr0.001', dict(
            schedule=dict(lr=1e-3), reference='resnet18/float-lr0.001')),
        ('twice the learning rate', 'lr0.004', dict(
            schedule=dict(lr=4e-3), reference='resnet18/float-lr0.004')),
        ('batch normalization recalibrated', 'bn', dict(bn_batches=16)),
        ('first and last layers alike', 'alike', dict(rules=())),
        ('first and last layers float', 'ends', dict(rules=[
            dict(match=name, skip=True)
            for name in ('backbone.conv1', 'head.fc')])))} | {
    'from the weights of [4,4], against float as long': [
        'resnet18/from-w4a4-w2a4', None]}, TRIED)
for pair in (*TRIED, (8, 8)):
    for clip in ('search', 'threshold'):
        add(f'resnet18/calibrated-{clip}-w{pair[0]}a{pair[1]}', RESNET18,
            options=hook(dict(bits=pair[0], clip=clip),
                         dict(bits=pair[1]), ENDS),
            start=FLOAT, reference=FLOAT, kind='calibrate')
STUDIES['calibrated'] = Study(
    'Without training: 16 batches', 'drop of top-1',
    columns((*TRIED, (8, 8))), [Row(f"clip='{clip}'", [
        f'resnet18/calibrated-{clip}-w{w}a{a}' for w, a in (*TRIED, (8, 8))])
        for clip in ('search', 'threshold')])

# -- Tables 3 to 6 ------------------------------------------------------------


def table(number, family, pairs, limits, float_paper, paper) -> None:
    """Bit pairs of one architecture: metric and drop.

    Args:
        number (int): Of the paper's table.
        family (str): Of cells that are there already.
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
        [Claim('goal, the paper\'s drop at [{},{}]: at most {}'.format(
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

# What is better on signs, on the other tasks as well?
RUNS_2_4 = [f'{family}/{run}' for family in ('det', 'seg')
            for run in ('w2a4', 'w4a4')]
AT_8_BITS = dict(
    det=('backbone.conv1', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg',
         'roi_head.bbox_head.fc_*'),
    seg=('backbone.stem.0', 'decode_head.conv_seg'))


def variant(name, label) -> str:
    cell, where = CELLS[name], 'custom_hooks.0.quantization'
    change = {
        'search': {f'{where}.weight.clip': 'search'},
        'ka1.4': {f'{where}.activation.k': round(1.4 * DEFAULT_K_A[4], 2),
                  f'{where}.rules': at_8_bits(*AT_8_BITS[cell.family])}}
    return add(f'{name}-{label}', cell.config, options=change[label],
               start=cell.start, reference=cell.reference)


KA, SEARCHED = ([variant(name, label) for name in RUNS_2_4]
                for label in ('ka1.4', 'search'))
STUDIES['tasks'] = Study(
    'Detection and segmentation: the choices that did well on signs',
    'drop of mAP or mIoU', ['Faster R-CNN [2,4]', '[4,4]', 'PSPNet [2,4]',
                            '[4,4]'],
    [Row('**default**', RUNS_2_4),
     Row('k_a of 4 bits: 1.4 of the default', KA),
     Row("clip='search'", SEARCHED)],
    [Claim('the default is better than 1.4 of its k_a',
           better=[*zip(RUNS_2_4, KA)]),
     Claim("the default is better than clip='search'",
           better=[*zip(RUNS_2_4, SEARCHED)])])
