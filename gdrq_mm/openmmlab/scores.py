"""What decides by validation scores counts those of the quantized model.

A reshaped float model scores better than the quantized one that it becomes:
the best checkpoint of a run would be that of its first phase, and early
stopping and ``ReduceOnPlateauLR`` would take the beginning of rounding for a
plateau.
"""
from typing import List

from mmengine.hooks import (
    CheckpointHook,
    EarlyStoppingHook,
    Hook,
    ParamSchedulerHook,
)
from mmengine.logging import print_log

from .wrappers import param_schedulers


def _deciders(runner) -> List[Hook]:
    return [hook for hook in runner.hooks
            if isinstance(hook, EarlyStoppingHook)
            or isinstance(hook, CheckpointHook) and hook.save_best
            # After a validation it asks no others.
            or isinstance(hook, ParamSchedulerHook) and _by_score(runner)]


def _by_score(runner) -> list:
    """Schedulers that go by validation scores."""
    return [scheduler for schedulers in param_schedulers(runner).values()
            for scheduler in schedulers
            if getattr(scheduler, 'need_val_args', False)]


def hold_scores_back(runner) -> None:
    """Let no best checkpoint and no early stop come of validations, until
    :func:`count_scores`."""
    held = [hook for hook in _deciders(runner)
            if 'after_val_epoch' not in vars(hook)]
    for hook in held:
        hook.after_val_epoch = lambda *args, **kwargs: None
    if held:
        print_log(
            'GDRQHook: validations score the reshaped float model until '
            'rounding begins; they do not count for '
            f'{", ".join(type(hook).__name__ for hook in held)}', 'current')


def count_scores(runner) -> None:
    """Let validations decide again."""
    for hook in _deciders(runner):
        vars(hook).pop('after_val_epoch', None)


def forget_scores(runner, model: str) -> None:
    """Begin again: scores that a resumed run has are of another model.

    Checkpoints that are the best by them stay where they are.

    Args:
        runner (Runner): Its hooks have their state back.
        model (str): Whose scores they are, in words.
    """
    info = runner.message_hub.runtime_info
    files = [info.pop(key) for key in list(info) if
             key.startswith('best_ckpt')]
    for key in [key for key in info if key.startswith('best_score')]:
        del info[key]
    for hook in _deciders(runner):
        if isinstance(hook, ParamSchedulerHook):
            for scheduler in _by_score(runner):
                scheduler.best = scheduler.rule_worse
                scheduler.num_bad_epochs = scheduler.cooldown_counter = 0
        elif isinstance(hook, CheckpointHook):
            if len(hook.key_indicators) == 1:
                hook.best_ckpt_path = None
            else:
                hook.best_ckpt_path_dict = dict.fromkeys(hook.key_indicators)
        else:
            hook.wait_count = 0
            hook.best_score = float(
                '-inf' if hook.rule == 'greater' else 'inf')
    if files:
        print_log(f'GDRQHook: {", ".join(map(str, files))} is the best '
                  f'checkpoint of {model} and stays as it is; the best of the '
                  'quantized model is looked for anew', 'current')
