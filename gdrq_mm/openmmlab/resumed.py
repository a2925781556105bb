"""What a resumed run goes on with, and what of it is new."""
import logging
import reprlib
from typing import Iterator, List, Optional, Tuple

from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict

from ..checkpoint import NAME, CheckpointError, read_phase, read_schemes
from ..training import PHASES

META = 'gdrq_mm'  # in the meta of training checkpoints
# Options that tell the types of optimizers apart.
TELLING = ('betas', 'momentum', 'alpha', 'lr_decay', 'rho')
_REMEDY = ('a model that GDRQHook converts is resumed with GDRQHook, a '
           'QuantizedModel as QuantizedModel, and both with the paramwise_cfg '
           'of before. Change back the config, or give the checkpoint as '
           'load_from and train with a fresh optimizer.')
_FLOAT_REMEDY = ('the checkpoint is of a float run. To begin a quantized one '
                 'with its weights, give the checkpoint as load_from, without '
                 'resume, in another work_dir.')
SHOWN = 6  # groups of an optimizer


def phase_of(checkpoint: dict) -> Optional[str]:
    """Phase that a checkpoint was saved in; None: of a float model.

    Raises:
        CheckpointError: It is none of the two.
    """
    entries = checkpoint['state_dict']
    return PHASES[read_phase(entries)] \
        if f'{NAME}.phase_index' in entries else None


def is_of_another(checkpoint: dict, state) -> bool:
    """Whether a checkpoint has weights of another quantization, as loading it
    will say.

    Args:
        checkpoint (dict): What a run is resumed from.
        state (QuantizationState): State of its model.

    Raises:
        CheckpointError: It is damaged.
    """
    schemes = read_schemes(checkpoint['state_dict'])
    return phase_of(checkpoint) == 'quantize' and schemes != {
        plan.name: plan.scheme() for plan in state.plans if plan.quantized}


def check_origin(runner, checkpoint: dict) -> None:
    """What a run is resumed from must be a run, and not the float model that
    it was to begin with. That of a float run is a warning.

    Args:
        runner (Runner): With ``resume``.
        checkpoint (dict): What it was resumed from.

    Raises:
        ValueError: It is what ``load_from`` names, of a float model, or of no
            training.
    """
    if 'message_hub' not in checkpoint:  # a published file
        raise ValueError(
            f'resume=True would go on with {runner._load_from!r}, which is no '
            'checkpoint of a training: to begin with its weights, leave out '
            '--resume')
    if phase_of(checkpoint) is not None:
        return
    if runner._load_from is not None:
        raise ValueError(
            f'resume=True would go on with load_from={runner._load_from!r}, '
            'a float model, at its epoch and with its optimizer. To go on '
            'with the quantized run of this work_dir, add --cfg-options '
            "load_from=None (mmdet's and mmpretrain's train.py do that at "
            "--resume, mmseg's does not; gdrq train does for all); to begin "
            'with the float model, leave out --resume')
    print_log(
        f'{runner.work_dir} holds a float run: this one goes on with it, '
        'quantized from here on, at its epoch, with its optimizer and what '
        'is left of its schedule. To begin a quantized training with its '
        'weights, give its checkpoint as load_from, without --resume, in '
        'another work_dir', 'current', logging.WARNING)


def warn_of_nothing_to_resume(runner) -> None:
    """A run that is to be resumed and finds no checkpoint begins anew, with
    the weights that its model was built with."""
    if runner._resume and not getattr(runner, '_has_loaded', True):
        print_log(
            f'resume=True, but {runner.work_dir} has no checkpoint: this '
            'training begins with no trained weights, whatever load_from the '
            'config has. To begin with those of load_from, leave out '
            '--resume', 'current', logging.WARNING)


def log_differences(checkpoint: dict, settings: dict, name: str) -> None:
    """Say which settings of a resumed run are not those of its checkpoint.

    Args:
        checkpoint (dict): Checkpoint of a quantized run; older ones say
            nothing.
        settings (dict): Settings of this run, in primitive types.
        name (str): Who says it.
    """
    before = dict(_flat(checkpoint.get('meta', {}).get(META, settings)))
    now = dict(_flat(settings))
    changed = [f'{name}: {before.get(name)!r} -> {now.get(name)!r}'
               for name in sorted({*before, *now})
               if before.get(name) != now.get(name)]
    if changed:
        print_log(f'{name}: the resumed run has other settings: '
                  + '; '.join(changed) + (
                      '. Another lr_mult does not act: the optimizer goes on '
                      'with the learning rates of the checkpoint'
                      if before.get('lr_mult') != now.get('lr_mult') else ''),
                  'current', logging.WARNING)


def _flat(settings, name: str = '') -> Iterator[Tuple[str, object]]:
    if isinstance(settings, dict):
        items = settings.items()
    elif isinstance(settings, (list, tuple)):
        items = enumerate(settings)
    else:
        yield name, settings
        return
    for key, value in items:
        yield from _flat(value, f'{name}.{key}' if name else str(key))


def check_optimizer(checkpoint: dict, optim_wrapper) -> None:
    """The optimizers of a resumed run must hold what those of its checkpoint
    held.

    Raises:
        CheckpointError: One of the checkpoint is none.
        ValueError: They do not.
    """
    if 'optimizer' not in checkpoint:
        return
    several = isinstance(optim_wrapper, OptimWrapperDict)
    for name, wrapper in (optim_wrapper.items() if several
                          else [('', optim_wrapper)]):
        saved = checkpoint['optimizer']
        if several:  # by name; other names are told by the runner
            saved = saved.get(name) if isinstance(saved, dict) else None
        groups = getattr(getattr(wrapper, 'optimizer', None),
                         'param_groups', None)
        if groups is not None and (saved is not None or not several):
            _check_groups(f'optimizer {name}'.rstrip(), saved, groups, _REMEDY
                          if phase_of(checkpoint) else _FLOAT_REMEDY)


def _check_groups(what: str, saved, groups: List[dict], remedy: str) -> None:
    here, there = _sizes(groups), _saved_sizes(saved)
    if there not in (None, here):
        raise ValueError(
            f'the {what} of the checkpoint holds {_in_words(there)}, that '
            f'of this run {_in_words(here)}: {remedy}')
    if there:
        kinds = [[name for name in TELLING if name in each[0]]
                 for each in (saved['param_groups'], groups)]
        if kinds[0] != kinds[1]:
            before, now = (', '.join(kind) or 'none' for kind in kinds)
            raise ValueError(
                f'the {what} of the checkpoint is of another type than that '
                f'of this run (options {before}; {now}). Change back the '
                'config, or give the checkpoint as load_from and train with a '
                'fresh optimizer.')


def _in_words(sizes: List[int]) -> str:
    return f'{sum(sizes)} parameters' + (
        f' in {len(sizes)} groups ({", ".join(map(str, sizes[:SHOWN]))}'
        + ', ...' * (len(sizes) > SHOWN) + ')' if sizes[1:] else '')


def _sizes(groups) -> List[int]:
    return [len(group['params']) for group in groups]


def _saved_sizes(optimizer) -> Optional[List[int]]:
    """Parameters in each group; None for one that has no groups itself."""
    try:
        groups = optimizer.get('param_groups')
        return None if groups is None else _sizes(groups)
    except (AttributeError, KeyError, TypeError):
        raise CheckpointError(
            'the checkpoint is damaged: its optimizer is '
            f'{reprlib.repr(optimizer)}, allowed: a dict whose param_groups '
            'are a list of dicts, each with a list of params. Nothing was '
            'loaded. Resume from another one, or give this one as load_from '
            'and train with a fresh optimizer.') from None
