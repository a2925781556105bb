"""Detection and segmentation: choices, and tries to lose less."""
from ..cells import Claim, Row, Study
from .architectures import FIRST_AND_LAST
from .choices import DEFAULT_K_A
from .common import CELLS, FAMILIES, STUDIES, add, at_8_bits

QUANTIZATION = 'custom_hooks.0.quantization'
LENGTHS = dict(  # of the fine-tuning, where its configs have it
    det=('train_cfg.max_epochs', 2, ('end', 'T_max')),
    seg=('train_cfg.max_iters', 350, ('end', )))
RATES = dict(det=1e-3, seg=4e-3)


def variant(name, label, options=(), start=None, reference=None, **fields):
    """A cell that differs from another one in some options."""
    cell = CELLS[name]
    return add(f'{name}-{label}', cell.config, options=dict(options),
               start=start or cell.start,
               reference=reference or cell.reference, **fields)


# -- What is better on signs, on the other tasks as well? ---------------------

RUNS = [f'{family}/{run}' for family in LENGTHS for run in ('w2a4', 'w4a4')]


def first_and_last(name):
    return FIRST_AND_LAST[CELLS[name].family]


def wider(name) -> dict:
    """Options for k = 3; at 2 bits of first and last layers alone."""
    if name.endswith('w4a4'):
        return {f'{QUANTIZATION}.weight.k': 3.}
    return {f'{QUANTIZATION}.rules': [
        dict(match=layer, weight=dict(bits=8, k=3.), activation=dict(bits=8))
        for layer in first_and_last(name)]}


CHOICES = {
    'k_a of 4 bits: 1.4 of the default': [variant(name, 'ka1.4', {
        f'{QUANTIZATION}.activation.k': round(1.4 * DEFAULT_K_A[4], 2),
        f'{QUANTIZATION}.rules': at_8_bits(*first_and_last(name))})
        for name in RUNS],
    "clip='search'": [variant(name, 'search', {
        f'{QUANTIZATION}.weight.clip': 'search'}) for name in RUNS],
    'k=3 at 4 and 8 bits': [variant(name, 'k3', wider(name))
                            for name in RUNS]}
STUDIES['tasks'] = Study(
    'Detection and segmentation: the choices that did well on signs',
    'drop of mAP or mIoU', ['Faster R-CNN [2,4]', '[4,4]', 'PSPNet [2,4]',
                            '[4,4]'],
    [Row('**base**', RUNS),
     *(Row(label, cells) for label, cells in CHOICES.items())],
    [Claim(f'the base loses less than "{label}"',
           better=[*zip(RUNS, cells)]) for label, cells in CHOICES.items()])

# -- What could make the drop smaller? ----------------------------------------


def longer(family, factor) -> dict:
    key, length, ends = LENGTHS[family]
    return {key: factor * length, **{
        f'param_scheduler.1.{end}': factor * length for end in ends}}


def rate(family, factor) -> dict:
    return {'optim_wrapper.optimizer.lr': factor * RATES[family],
            'param_scheduler.1.eta_min': factor * RATES[family] / 100}


def tries(family) -> dict:
    """Label -> cell at [2,4], each against a float model trained alike."""
    name = f'{family}/w2a4'
    start, floating = CELLS[name].start, f'{family}/float'

    def float_model(label, options=(), start=start):
        return add(f'{floating}-{label}', CELLS[floating].config,
                   options=dict(options), start=start)

    again = float_model('longer', start=floating)
    found = {}
    for label, suffix, options in (
            ('twice as long', 'long', longer(family, 2)),
            ('half the learning rate', 'lr0.5', rate(family, .5)),
            ('twice the learning rate', 'lr2', rate(family, 2))):
        found[label] = variant(name, suffix, options, reference=float_model(
            suffix, options))
    for label, suffix, options in (
            ('batch normalization recalibrated', 'bn',
             {'custom_hooks.0.bn_batches': 16}),
            ('first and last layers float', 'ends', {
                f'{QUANTIZATION}.rules': [
                    dict(match=layer, skip=True)
                    for layer in FIRST_AND_LAST[family]]}),
            ('group_size=1', 'gs1', {f'{QUANTIZATION}.weight.group_size': 1}),
            ('group_size=-1', 'layer',
             {f'{QUANTIZATION}.weight.group_size': -1})):
        found[label] = variant(name, suffix, options)
    found['from the fine-tuned float model'] = variant(
        name, 'from-float', start=floating, reference=again)
    found['from the weights of [4,4]'] = variant(
        name, 'from-w4a4', start=f'{family}/w4a4', reference=again,
        latent=True)
    return found


for family in LENGTHS:
    base, tried = f'{family}/w2a4', tries(family)
    STUDIES[f'tries_{family}'] = Study(
        f'What could make the drop smaller: {FAMILIES[family].title}',
        'drop of mAP' if family == 'det' else 'drop of mIoU', ['[2,4]'],
        [Row('**base**', [base]),
         *(Row(label, [name]) for label, name in tried.items())],
        [Claim(f'the base loses less than "{label}"',
               better=[(base, name)]) for label, name in tried.items()])
