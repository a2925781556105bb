"""ResNet-18, weights alone: Tables 1 and 2, Fig. 8."""
from ..cells import Claim, Row, Study
from .common import ITERS, STUDIES, add, finetune, hook

GROUP_SIZES = {'1': 1, '4': 4, '16': 16, 'layer': -1}
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

