"""What a resumed run goes on with, and what of it is new."""
import functools
import logging
import reprlib
from typing import Callable, Iterator, Optional, Tuple

from mmengine.logging import print_log
from mmengine.runner import FlexibleRunner, Runner

from ..checkpoint import NAME, CheckpointError, read_phase
from ..training import PHASES, get_state
from .wrappers import unwrap

META = 'gdrq_mm'  # in the meta of training checkpoints
_REMEDY = ('a model that GDRQHook converts is resumed with GDRQHook, a '
           'QuantizedModel as QuantizedModel. Change back the config, or '
           'give the checkpoint as load_from and train with a fresh '
           'optimizer.')


def phase_of(checkpoint: dict) -> Optional[str]:
    """Phase that a checkpoint was saved in; None: of a float model.

    Raises:
        CheckpointError: It is none of the two.
    """
    entries = checkpoint['state_dict']
    return PHASES[read_phase(entries)] \
        if f'{NAME}.phase_index' in entries else None


def log_differences(checkpoint: dict, settings: dict) -> None:
    """Say which settings of a resumed run are not those of its checkpoint.

    Args:
        checkpoint (dict): Checkpoint of a run with ``GDRQHook``; older ones
            say nothing.
        settings (dict): Settings of this run, in primitive types.
    """
    before = dict(_flat(checkpoint.get('meta', {}).get(META, settings)))
    now = dict(_flat(settings))
    changed = [f'{name}: {before.get(name)!r} -> {now.get(name)!r}'
               for name in sorted({*before, *now})
               if before.get(name) != now.get(name)]
    if changed:
        print_log('GDRQHook: the resumed run has other settings: '
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
    """The optimizer of a resumed run must hold what that of its checkpoint
    held.

    Raises:
        CheckpointError: That of the checkpoint is none.
        ValueError: It does not.
    """
    groups = getattr(getattr(optim_wrapper, 'optimizer', None),
                     'param_groups', None)
    if groups is None or 'optimizer' not in checkpoint:
        return
    here, there = _size(groups), _saved_size(checkpoint['optimizer'])
    if there not in (None, here):
        raise ValueError(
            f'the optimizer of the checkpoint holds {there} parameters, that '
            f'of this run {here}: {_REMEDY}')


def _size(groups) -> int:
    return sum(len(group['params']) for group in groups)


def _saved_size(optimizer) -> Optional[int]:
    """Number of parameters; None for one that has no groups itself."""
    try:
        groups = optimizer.get('param_groups')
        return None if groups is None else _size(groups)
    except (AttributeError, KeyError, TypeError):
        raise CheckpointError(
            'the checkpoint is damaged: its optimizer is '
            f'{reprlib.repr(optimizer)}, allowed: a dict whose param_groups '
            'are a list of dicts, each with a list of params. Nothing was '
            'loaded. Resume from another one, or give this one as load_from '
            'and train with a fresh optimizer.') from None


def explain_other_optimizers() -> Callable:
    """Let ``resume`` of runners say the same where no GDRQHook is there.

    Returns:
        callable: Takes it back.
    """
    before = {runner: runner.resume for runner in (Runner, FlexibleRunner)}
    for runner, resume in before.items():
        runner.resume = _explained(resume)

    def undo():
        for runner, resume in before.items():
            runner.resume = resume

    return undo


def _explained(resume: Callable) -> Callable:
    """A ``resume`` that says it."""

    @functools.wraps(resume)
    def explained(self, *args, **kwargs):
        try:
            return resume(self, *args, **kwargs)
        except ValueError as error:
            # torch's, of the number of groups or of their size.
            if 'parameter group' in str(error) and get_state(
                    unwrap(self.model)) is not None:
                raise ValueError(
                    'the optimizer of the checkpoint holds other parameters '
                    f'than that of this run: {_REMEDY}') from error
            raise

    return explained
