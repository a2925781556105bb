"""Averages of a model: those of ``EMAHook``, and those inside of it (momentum
encoders, teachers)."""
import itertools
import logging
from typing import Callable, Container, Iterator

from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.model import BaseAveragedModel, BaseModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..training import get_state
from ..training.copies import Copied
from .resumed import META


def average_what_was_added(model: nn.Module) -> None:
    """Let averages in a converted model take what its quantizers learn as
    their weights: no gradient trains it.

    Momentum encoders (MoCo, BYOL) list their entries when they are built; the
    teachers of semi-supervised detectors are models whose parameters are
    frozen then, and averaged by a hook or not at all.

    Args:
        model (nn.Module): The quantized model.
    """
    state = get_state(model)
    if state is None:
        return
    learned = {id(each) for layer in state.layers.values()
               for _, quantizer in layer.quantizers()
               for each in quantizer.parameters()}
    for module in list(model.modules()):
        is_average = isinstance(module, BaseAveragedModel)
        if not is_average and (module is model or not _is_frozen_model(
                module, learned)):
            continue
        averaged = module.module if is_average else module
        averaged.requires_grad_(False)
        inside = set(averaged.modules())
        state.learned = [each for each in state.learned
                         if each[0] not in inside]
        if is_average:
            module.avg_parameters = averaged.state_dict() \
                if module.update_buffers else dict(
                    averaged.named_parameters())


def _is_frozen_model(module: nn.Module, added: Container[int]) -> bool:
    """Whether it is a whole model of which nothing was to be trained, before
    parameters were ``added``."""
    if not isinstance(module, BaseModel):
        return False
    weights = [each for each in module.parameters() if id(each) not in added]
    return bool(weights) and not any(each.requires_grad for each in weights)


def averaging_hooks(runner) -> Iterator[Hook]:
    """Hooks of a run that hold an averaged copy of its model."""
    return (hook for hook in runner.hooks
            if isinstance(getattr(hook, 'ema_model', None),
                          BaseAveragedModel))


def swap_statistics_as_well(runner, model: nn.Module) -> None:
    """Let ``EMAHook``, which swaps parameters alone where it evaluates one of
    its two models or the other, swap normalization statistics with them: those
    of a checkpoint may fit one of the two (``bn_batches``).

    Args:
        runner (Runner): With the hooks.
        model (nn.Module): The quantized model.
    """
    swap_no_more(runner)  # a run before may have failed
    for hook in averaging_hooks(runner):
        if isinstance(hook, EMAHook) and not hook.ema_model.update_buffers:
            hook._swap_ema_parameters = _swap_with_statistics(hook, model)


def swap_no_more(runner) -> None:
    """Take that back."""
    for hook in averaging_hooks(runner):
        vars(hook).pop('_swap_ema_parameters', None)


def _swap_with_statistics(hook: EMAHook, model: nn.Module
                          ) -> Callable[[], None]:
    swap = hook._swap_ema_parameters

    def swap_both() -> None:
        swap()
        for ours, averaged in zip(norm_statistics(model), norm_statistics(
                hook.ema_model.module)):
            kept = averaged.clone()
            averaged.copy_(ours)
            ours.copy_(kept)

    return swap_both


def norm_statistics(model: nn.Module) -> Iterator[Tensor]:
    """Running means and variances of batch normalization."""
    return itertools.chain.from_iterable(
        (norm.running_mean, norm.running_var) for norm in model.modules()
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None)


def sync_averages(runner, model: nn.Module) -> None:
    """Give averaged models the phase and the signs of the model.

    Where ``EMAHook`` averages buffers, it leaves those that hold no floats as
    it first copied them.

    Args:
        runner (Runner): With the hooks.
        model (nn.Module): The quantized model.
    """
    state = get_state(model)
    for hook in averaging_hooks(runner):
        averaged = get_state(hook.ema_model.module)
        for ours, theirs in [(state, averaged), *(
                (state.layers[name], layer)
                for name, layer in averaged.layers.items())]:
            source = dict(ours.named_buffers())
            for name, buffer in theirs.named_buffers():
                if not buffer.is_floating_point() and name != 'phase_index':
                    buffer.copy_(source[name])
        # Ranges begin anew with a phase, as those of the model do.
        averaged.set_phase(state.phase)
        averaged.copied = Copied()


def warn_of_averaging(runner, model: nn.Module, bn_batches: int) -> None:
    """Averaged weights have no normalization statistics of their own, and are
    what is saved, whichever of the two models is evaluated.

    Args:
        runner (Runner): The runner of a training.
        model (nn.Module): Its model.
        bn_batches (int): With how many batches it recalibrates.
    """
    if any(averaging_hooks(runner)) and not bn_batches:
        _warn(model, 'validations and checkpoints of this run have')
    # Of mmpretrain's EMAHook.
    if not all(getattr(hook, 'evaluate_on_ema', True)
               for hook in averaging_hooks(runner)):
        print_log(
            'validations of this run, save_best among them, are of the '
            'weights that are trained; published is their average. Set '
            'evaluate_on_ema=True of EMAHook', 'current', logging.WARNING)


def warn_of_averaged(model: nn.Module, checkpoint: dict) -> None:
    """The same of a checkpoint that is to be published.

    Args:
        model (nn.Module): The model it was loaded into.
        checkpoint (dict): Its content.
    """
    settings = checkpoint.get('meta', {}).get(META) or {}
    if 'ema_state_dict' in checkpoint and not settings.get('bn_batches'):
        _warn(model, 'the checkpoint holds')


def _warn(model: nn.Module, what: str) -> None:
    if any(True for _ in norm_statistics(model)):
        print_log(
            f'{what} weights averaged by EMAHook with the normalization '
            'statistics of other weights, those that were trained; at few '
            'bits they do not fit. Give GDRQHook bn_batches (32, say): it '
            'recalibrates before validations and checkpoints', 'current',
            logging.WARNING)
