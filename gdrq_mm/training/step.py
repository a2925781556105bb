"""The training step of quantized models.

After every step of a ``torch.optim`` optimizer that holds parameters of a
model, its weights are projected onto their thresholds and those of activations
move: plain training loops need no further call, and skipped steps (gradient
accumulation, AMP overflow) change nothing. A weight that the optimizer left
alone (no gradient, a learning rate of 0) is left alone as well.
"""
import itertools
import sys
import threading
import warnings
import weakref
from types import FrameType
from typing import Any, Dict, List, Optional, Set, Tuple

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ..errors import and_more
from ..layers import (
    check_layers_are_there,
    parameters_of,
    warn_of_shared_places,
)
from .copies import hand_on_ranges
from .learned import check_learned_parameters, held_by

_LIVE = weakref.WeakSet()  # every QuantizationState there is
_SEEN = weakref.WeakSet()  # optimizers that have stepped
_numbers = itertools.count()
_local = threading.local()


def watch(state) -> None:
    """Let optimizers that hold the parameters of a model step its state.

    Args:
        state (QuantizationState): State of the model.
    """
    state.number = next(_numbers)
    _LIVE.add(state)


def live_states() -> list:
    """Every QuantizationState there is, as they were made: in the same order
    in every process, which all reduce statistics of one model at a time."""
    return sorted(_LIVE, key=lambda state: state.number)


def _before_optimizer_step(optimizer, args, kwargs) -> None:
    step = sys._getframe(1)
    _running(step).append((step, set()))


def _after_optimizer_step(optimizer, args, kwargs) -> None:
    step = sys._getframe(1)
    running = _running(step)
    stepped = _stepped(optimizer)
    if running and running[-1][0] is step:
        stepped |= running.pop()[1]
    if running:  # an optimizer that wraps this one: the step is not over
        running[-1][1].update(stepped)
        return
    if optimizer not in _SEEN:
        _SEEN.add(optimizer)
        _warn_of_eval_mode(optimizer)
    states = [state for state in live_states() if state.training]
    # Fused optimizers skip an overflown AMP step themselves, on the device.
    found_inf = getattr(optimizer, 'found_inf', None)
    if not states or (found_inf is not None and bool(found_inf)):
        return
    held = held_by(optimizer)
    for state in states:
        if any(id(parameter) in held for parameter in parameters_of(state)):
            _check_once(state, optimizer)
            step_(state, stepped)


def _check_once(state, optimizer) -> None:
    """At the first step of an optimizer."""
    if optimizer not in state.checked_optimizers:
        state.checked_optimizers.add(optimizer)
        check_layers_are_there(state)
        warn_of_shared_places(state.layers)
        check_learned_parameters(state, optimizer)


def _warn_of_eval_mode(optimizer) -> None:
    """A part that was taken into another model trains without the rest."""
    held = held_by(optimizer)
    for state in live_states():
        trained = [] if state.training else [
            name for name, layer in state.layers.items() if layer.training
            and any(id(each) in held for each in layer.parameters())]
        if trained:
            warnings.warn(
                'a quantized model is in eval mode while an optimizer trains '
                f'{and_more(trained, "of its layers", 1)}: no weight is '
                'projected, and thresholds stay. Call .train() of the whole, '
                'or, where a part of it is in another model now, of '
                'layer.state of any of its layers (and .eval() alike)')


def _running(step: FrameType) -> List[Tuple[FrameType, Set[int]]]:
    """Steps of optimizers that are running in this thread, the outer first,
    and the weights that those inside have stepped.

    Args:
        step (FrameType): The innermost. One whose frame is not among its
            callers has failed: it is dropped.
    """
    callers, frame = set(), step
    while frame is not None:
        callers.add(frame)
        frame = frame.f_back
    _local.running = [each for each in getattr(_local, 'running', [])
                      if each[0] in callers]
    return _local.running


def _stepped(optimizer) -> Set[int]:
    """``id`` of the parameters that a step has changed: those with a gradient
    and a learning rate. (Reading one from a GPU would wait for it.)"""
    return {id(parameter) for group in optimizer.param_groups
            if not _is_zero(group.get('lr'))
            for parameter in group['params'] if parameter.grad is not None}


def _is_zero(lr) -> bool:
    return not (isinstance(lr, torch.Tensor) and lr.is_cuda) and lr == 0


register_optimizer_step_pre_hook(_before_optimizer_step)
register_optimizer_step_post_hook(_after_optimizer_step)


@torch.no_grad()
def step_(state, weights: Optional[Set[int]] = None) -> None:
    """Project weights and move activation thresholds, once per step.

    Args:
        state (QuantizationState): State of the model.
        weights (set[int], optional): ``id`` of the weights that were stepped.
            Defaults to None: all that require a gradient.
    """
    done = {}
    state.begin_step()
    for layer in state.layers.values():
        quantizer = getattr(layer, 'weight_quantizer', None)
        if quantizer is None or not layer.called:
            continue
        weight = layer.latent_weight
        if not weight.requires_grad:
            continue
        if weights is not None and id(weight) not in weights:
            continue
        if id(weight) in done:  # two layers share this weight
            quantizer.share(done[id(weight)], weight)
        else:
            quantizer.after_step(weight)
            done[id(weight)] = quantizer
    turned = update_thresholds_(state)
    hand_on_ranges(state, live_states(), turned)


@torch.no_grad()
def update_thresholds_(state) -> List[str]:
    """Let activation quantizers of every type use their statistics.

    Args:
        state (QuantizationState): State of the model.

    Returns:
        list[str]: Names of those whose codes have come to be signed.
    """
    kinds: Dict[Any, list] = {}
    for quantizer in state.activation_quantizers.values():
        kinds.setdefault(type(quantizer), []).append(quantizer)
    for kind, quantizers in kinds.items():
        kind.update_(quantizers)
    turned = [name for name, quantizer in state.activation_quantizers.items()
              if quantizer.turned_signed]
    if turned:
        for name in turned:
            state.activation_quantizers[name].turned_signed = False
        warnings.warn(
            f'{", ".join(turned)}: the input has negative values, which it '
            'did not have in the first steps; they have codes from now on')
    return turned
