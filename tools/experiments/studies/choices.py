"""ResNet-18, weights and activations: what the choices cost."""
from ..cells import Claim, Row, Study
from .common import (
    CELLS,
    ITERS,
    STUDIES,
    add,
    at_8_bits,
    columns,
    finetune,
    hook,
)
from .weights import FLOAT, GROUP_SIZES, KS, LONGER, RESNET18

PAIRS = ((2, 2), (2, 4), (4, 4))
ENDS = at_8_bits('backbone.conv1', 'head.fc')


def choice(name, pair, weight={}, activation={}, start=FLOAT,
           reference=LONGER, rules=ENDS, schedule={}, **arguments) -> str:
    # The paper's k at all bits: choices are compared at one.
    return add(
        f'resnet18/{name}-w{pair[0]}a{pair[1]}', RESNET18,
        options={**finetune(**schedule), **hook(
            {'bits': pair[0], 'k': 2., **weight},
            dict(bits=pair[1], **activation), rules, **arguments)},
        start=start, reference=reference)


def base(pair) -> str:
    return f'resnet18/base-w{pair[0]}a{pair[1]}'


def variants(name, title, rows, pairs=PAIRS) -> None:
    """A study of variants of the base, a row each.

    Args:
        name (str): Name of the study.
        title (str): The same.
        rows (dict[str, list[str]]): Label -> cells.
        pairs (sequence): Bits of the columns.
    """
    bases = [base(pair) for pair in pairs]
    STUDIES[name] = Study(
        title, 'drop of top-1', columns(pairs), [
            Row('**base**', bases),
            *(Row(label, cells) for label, cells in rows.items())],
        [Claim(f'the base loses less than "{label}"', better=[
            (ours, theirs) for ours, theirs in zip(bases, cells)
            if theirs]) for label, cells in rows.items()])


K_PAIRS = (*PAIRS[:2], (3, 4), PAIRS[2], (8, 8))
for pair in (*K_PAIRS, (4, 2), (4, 8)):
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
variants('k', 'k of weights (base: k=2)', {
    f'k={k}': [choice(f'k{k}', pair, weight=dict(k=float(k)))
               for pair in K_PAIRS] for k in (*KS[1:-1], '6')}, K_PAIRS)
# Defaults of unsigned inputs: 4.9, 7.3 and 10.5 at 2, 4 and 8 bits.
DEFAULT_K_A = {2: 4.9, 4: 7.3, 8: 10.5}
variants('k_a', 'k_a of activations, weights at 4 bits', {
    f'{factor} of the default': [
        choice(f'ka{factor}', (4, bits), activation=dict(
            k=round(factor * k, 2))) for bits, k in DEFAULT_K_A.items()]
    for factor in (.35, .5, .7, 1.4, 2)}, [(4, bits) for bits in DEFAULT_K_A])

TRIED = ((2, 4), (4, 4))
TWICE, TENFOLD = (
    add(f'resnet18/float-{name}', RESNET18, options=finetune(factor * ITERS),
        start=FLOAT) for name, factor in (('twice', 2), ('tenfold', 10)))
for lr in (1e-3, 4e-3):
    add(f'resnet18/float-lr{lr}', RESNET18, options=finetune(lr=lr),
        start=FLOAT)
add('resnet18/from-w4a4-w2a4', RESNET18, options=CELLS[
    'resnet18/base-w2a4'].options, start='resnet18/base-w4a4',
    reference=TWICE, latent=True)
BY_BITS = dict(weight=dict(k=None))  # the default
WIDE = dict(BY_BITS, activation=dict(k=round(1.4 * DEFAULT_K_A[4], 2)))
variants('tries', 'What could make the drop smaller: ResNet-18, 100 signs', {
    label: [choice(name, pair, **fields) for pair in TRIED]
    for label, name, fields in (
        ('twice as long', 'long', dict(
            schedule=dict(iters=2 * ITERS), reference=TWICE)),
        ('ten times as long', 'tenfold', dict(
            schedule=dict(iters=10 * ITERS), reference=TENFOLD)),
        ('half the learning rate', 'lr0.001', dict(
            schedule=dict(lr=1e-3), reference='resnet18/float-lr0.001')),
        ('twice the learning rate', 'lr0.004', dict(
            schedule=dict(lr=4e-3), reference='resnet18/float-lr0.004')),
        ('batch normalization recalibrated', 'bn', dict(bn_batches=16)),
        ('first and last layers alike', 'alike', dict(rules=())),
        ('first and last layers float', 'ends', dict(rules=[
            dict(match=name, skip=True)
            for name in ('backbone.conv1', 'head.fc')])),
        ('k by bits: 3 at 4 and 8 bits', 'bybits', BY_BITS),
        ('the same and 1.4 of k_a', 'wide', WIDE),
        ('both, ten times as long', 'wide-tenfold', dict(
            WIDE, schedule=dict(iters=10 * ITERS), reference=TENFOLD)))} | {
    'from the weights of [4,4]': [
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

