"""Real data: GDRQ with one change at a time, and its defaults."""
from ..cells import Claim, Row, Study
from .common import FAMILIES, STUDIES, add, columns, hook
from .real import (
    DEFAULTS,
    FIRST_SEED,
    NONZERO,
    PAIRS,
    TASKS,
    bits,
    ends,
    options,
)

# One change at a time: where LSQ's lead, if any, is.
CHANGES = {  # name of cells -> words, and what is changed
    'clip-a-channel': ('a clip value a channel',
                       dict(weight=dict(group_size=1))),
    'lsq-weight': ('weights as LSQ',
                   dict(weight=dict(type='LSQ', group_size=1))),
    'learned-threshold': ('learned thresholds',
                          dict(activation=dict(threshold='learned'))),
    'lsq-activation': ('activations as LSQ',
                       dict(activation=dict(type='LSQ')))}


def changed(family: str, name: str, change: dict, pair) -> str:
    """GDRQ with thresholds of non-zeros and one change."""
    task, sides = TASKS[family], []
    for side, each in zip(('weight', 'activation'), pair):
        fields = change.get(side, {})
        if 'type' not in fields:
            fields = {**NONZERO[side], **fields}
        sides.append(dict(fields, bits=each))
    return add(f'{family}/{name}-{bits(pair)}',
               task.config.format('finetune_'),
               options=hook(*sides, ends(task)),
               start=f'{family}/start', reference=f'{family}/float')


def learned_study() -> Study:
    """What the optimizer moves in GDRQ and in LSQ+; three seeds of what is
    compared at [2,2], one of the others."""
    learned = {
        'learned-threshold': CHANGES['learned-threshold'][1],
        # Stored weights are not clipped in any case while rounding acts.
        'learned-clip': dict(weight=dict(clip='learned', projection=False),
                             activation=dict(threshold='mse'))}
    rows, claims = [], []
    for family, task in TASKS.items():
        title = FAMILIES[family].title
        rows += [
            Row(f'{title}: {label}',
                [f'{family}/{name}-{bits(pair)}' for pair in PAIRS])
            for label, name in (
                ('GDRQ by its defaults', 'mse'),
                ('learned thresholds', 'learned-threshold'),
                ('learned clip values of weights', 'learned-clip'),
                ('LSQ+', 'lsqplus'))]
        for pair in PAIRS:
            for name, change in learned.items():
                # That of the thresholds at [2,2] is one of the changes.
                if (name, pair) != ('learned-threshold', (2, 2)):
                    changed(family, name, change, pair)
        claims.append(Claim(
            f'learned thresholds lose less than the defaults, [2,2], {title}',
            better=[(f'{family}/learned-threshold-w2a2',
                     f'{family}/mse-w2a2')]))
    return Study(
        'Real data: learned thresholds and clip values (levels: 15 and 4 of '
        'GDRQ, 16 and 4 of LSQ+)', 'drop', columns(PAIRS), rows, claims,
        first_seed=FIRST_SEED)


def defaults_study() -> Study:
    """Which thresholds, and how many levels; three seeds."""
    mean = dict(activation=dict(threshold='mean'))
    odd = dict(weight=dict(levels='odd'))
    rows, claims = [], []
    for family in TASKS:
        title, pairs = FAMILIES[family].title, ((4, 4), (2, 2))
        errors, zeros = ([f'{family}/{name}-{bits(pair)}' for pair in pairs]
                         for name in ('mse', 'bestk'))
        means = [changed(family, 'mean', mean, pair) for pair in pairs]
        three = changed(family, 'odd', odd, (2, 2))
        rows.append(Row(title, [errors[0], zeros[0], means[0],
                                errors[1], zeros[1], means[1], three]))
        claims += [
            Claim(f'thresholds of least squared error lose less than means of '
                  f'non-zeros, {title}', better=list(zip(errors, zeros))),
            Claim(f'means of non-zeros lose less than means, {title}',
                  better=list(zip(zeros, means))),
            Claim(f'four levels lose less than three, {title}',
                  better=[(zeros[1], three)])]
    names = ('least squared error', 'non-zeros', 'means')
    return Study(
        'Real data: thresholds of activations, and levels of weights at two '
        'bits (of thresholds of non-zeros)', 'drop',
        [f'{pair}, {name}' for pair in ('[4,4]', '[2,2]') for name in names]
        + ['[2,2], three levels'], rows, claims, first_seed=FIRST_SEED)


def changes_study() -> Study:
    """What each part of a method does at [2,2]; one seed."""
    pair = 2, 2
    rows = [Row(words, [f'{family}/{name}-{bits(pair)}' for family in TASKS])
            for words, name in (('nothing', 'bestk'), (
                'thresholds of least squared error, the defaults', 'mse'))]
    rows += [Row(words, [changed(family, name, change, pair)
                         for family in TASKS])
             for name, (words, change) in CHANGES.items()]
    return Study('Real data at [2,2], four levels of weights and activations: '
                 'one change of GDRQ with thresholds of non-zeros',
                 'drop, by what is changed', [
                     f'{FAMILIES[family].title}: {task.metric}'
                     for family, task in TASKS.items()], rows, seeds=1,
                 first_seed=FIRST_SEED)


def channels_study() -> Study:
    """The defaults with a clip value a filter, at two bits; three seeds."""
    pairs, rows, claims = ((2, 4), (2, 2)), [], []
    channel = dict(weight=dict(group_size=1),
                   activation=dict(threshold='mse'))
    for family in TASKS:
        title = FAMILIES[family].title
        groups = [f'{family}/mse-{bits(pair)}' for pair in pairs]
        channels = [changed(family, 'mse-channel', channel, pair)
                    for pair in pairs]
        rows += [Row(f'{title}: a clip value for four filters, the defaults',
                     groups), Row(f'{title}: a clip value a filter', channels)]
        claims.append(Claim(
            f'a clip value a filter loses less than one for four, {title}',
            better=list(zip(channels, groups))))
    return Study('Real data: group size (four levels)', 'drop',
                 columns(pairs), rows, claims, first_seed=FIRST_SEED)


def longer_study(epochs=4) -> Study:
    """Whether the classifier lacks training: twice the epochs, and a start
    that has had them in float; one seed."""
    task, pairs, method = TASKS['tiny'], ((4, 4), (2, 4)), DEFAULTS
    config = task.config.format('finetune_')
    schedule = dict(train_cfg=dict(max_epochs=epochs), param_scheduler=[
        dict(type='LinearLR', start_factor=.05, by_epoch=False, begin=0,
             end=100),
        dict(type='CosineAnnealingLR', eta_min=1e-5, begin=0, end=epochs,
             T_max=epochs, by_epoch=True, convert_to_iter_based=True)])

    def drops(suffix, start, changes):
        floating = add(f'tiny/float-{suffix}', config, options=changes,
                       start=start)
        return floating, [add(
            f'tiny/mse-{bits(pair)}-{suffix}', config,
            options={**options(task, method, pair), **changes}, start=start,
            reference=floating) for pair in pairs]

    longer, names = drops(f'e{epochs}', 'tiny/start', schedule)
    later, further = drops(f'from-e{epochs}', longer, {})
    rows = []
    for label, floating, quantized in (
            ('2 epochs', 'tiny/float', [
                f'tiny/mse-{bits(pair)}' for pair in pairs]),
            (f'{epochs} epochs', longer, names),
            (f'2 epochs, begun with the float model of {epochs}', later,
             further)):
        rows += [Row(f'{label}: top-1 of float', [floating], 'metric'),
                 Row('drop', quantized)]
    return Study(
        'ResNet-18, Tiny-ImageNet-100: more epochs (the defaults; levels: 15 '
        'and 4)', '', columns(pairs), rows, seeds=1, first_seed=FIRST_SEED)


def wider_study(channels=48) -> Study:
    """Whether the classifier lacks width: twice the channels, float start and
    fine-tuning as before; one seed."""
    task, pairs, method = TASKS['tiny'], ((4, 4), (2, 4)), DEFAULTS
    suffix = f'c{channels}'
    width = {'model.backbone.stem_channels': channels,
             'model.backbone.base_channels': channels,
             'model.head.in_channels': 8 * channels}
    start = add(f'tiny/start-{suffix}', task.config.format(''),
                options=width, shared=True)
    config = task.config.format('finetune_')
    floating = add(f'tiny/float-{suffix}', config, options=width, start=start)
    wide = [add(f'tiny/mse-{bits(pair)}-{suffix}', config, start=start,
                reference=floating,
                options={**options(task, method, pair), **width})
            for pair in pairs]
    rows = []
    for label, reference, quantized in (
            ('24 channels', 'tiny/float', [
                f'tiny/mse-{bits(pair)}' for pair in pairs]),
            (f'{channels} channels', floating, wide)):
        rows += [Row(f'{label}: top-1 of float', [reference], 'metric'),
                 Row('drop', quantized)]
    return Study(
        'ResNet-18, Tiny-ImageNet-100: channels in the first stage, of 64 '
        '(the defaults; levels: 15 and 4)', '', columns(pairs), rows, seeds=1,
        first_seed=FIRST_SEED)


STUDIES['real_defaults'] = defaults_study()
STUDIES['real_longer'] = longer_study()
STUDIES['real_wider'] = wider_study()
STUDIES['real_channels'] = channels_study()
STUDIES['real_changes'] = changes_study()
STUDIES['real_learned'] = learned_study()
