"""Learned parameters of quantizers, and the optimizers that train them.

Whatever converts a model before its optimizer is built needs nothing of this:
``model.parameters()`` has them. Where the optimizer was there first, it takes
them by :func:`add_learned_parameters`.
"""
import gc
import os
import warnings
import weakref
from typing import Container, Dict, Iterable, List, Optional, Set, Tuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import and_more

# State of a model -> optimizers that were given what it learns.
_OPTIMIZERS: 'weakref.WeakKeyDictionary' = weakref.WeakKeyDictionary()


def learned_parameters(state) -> Dict[str, nn.Parameter]:
    """All learned parameters of a quantized model, by name.

    Args:
        state (QuantizationState): State of the model.
    """
    return {f'{plan.name}.{name}': parameter for plan in state.plans
            for name, parameter in plan.learned_parameters().items()}


def decaying_parameters(state) -> Set[int]:
    """The ``id`` of each learned parameter that has weight decay.

    Args:
        state (QuantizationState): State of the model.
    """
    return {id(parameter) for layer in state.layers.values()
            for _, quantizer in layer.quantizers() if quantizer.decays
            for parameter in quantizer.learned_parameters()}


def add_learned_parameters(state, optimizer: Optimizer,
                           lr_mult: float = 1.) -> List[dict]:
    """Let ``optimizer`` train the learned parameters of a model.

    It takes those of the layers whose weight it holds, with the options of
    the group of that weight, but without weight decay, which would pull a
    step size towards zero, unless its quantizer says that it ``decays``.
    Those of ReLUs, of outputs, and of layers with a frozen weight go with the
    layer that is nearest by name, unless another optimizer took them before.
    What the optimizer holds already moves, so that it is in the same order
    whichever way the model was converted, and a resumed run finds it again.

    Args:
        state (QuantizationState): State of the model.
        optimizer (Optimizer): One of ``torch.optim``; changed in place. Where
            several train the model, call this for each, before schedulers
            are built, which count the groups.
        lr_mult (float): Their learning rate over that of the weight. Defaults
            to 1.

    Returns:
        list[dict]: The groups that were added, one for each group of weights
        (or two, one of them with weight decay); none the second time.

    Raises:
        ValueError: A ZeroRedundancyOptimizer holds them already.
    """
    others = _OPTIMIZERS.setdefault(state, weakref.WeakSet())
    if optimizer in others:  # a second training with it
        return []
    home = {id(parameter): index
            for index, group in enumerate(optimizer.param_groups)
            for parameter in group['params']}
    decaying = decaying_parameters(state)
    taken = {id(parameter) for other in others
             for group in other.param_groups for parameter in group['params']}
    members: Dict[Tuple[int, bool], List[nn.Parameter]] = {}
    for plan in state.plans:
        index = home.get(id(_weight_beside(plan, state.plans, home)))
        trained = plan.parameter is not None and plan.parameter.requires_grad
        for parameter in plan.learned_parameters().values():
            if index is not None and (trained or id(parameter) not in taken):
                members.setdefault((index, id(parameter) in decaying),
                                   []).append(parameter)
    groups = list(optimizer.param_groups)
    _check_movable(optimizer, members, home)
    _warn_of_own_rates(state, groups, members, home)
    names = {id(parameter): name
             for name, parameter in learned_parameters(state).items()}
    for (index, decays), parameters in members.items():
        moved = {id(parameter) for parameter in parameters}
        for group in groups:
            kept = [place for place, parameter in enumerate(group['params'])
                    if id(parameter) not in moved]
            for key in ('params', 'param_names'):  # of named_parameters()
                if key in group:
                    group[key] = [group[key][place] for place in kept]
        options = {key: value for key, value in groups[index].items()
                   if key != 'params'}
        for key in ('lr', 'initial_lr', 'max_lr', 'min_lr'):
            if key in options:  # the last two of a OneCycleLR
                options[key] = options[key] * lr_mult
        if not decays:
            options['weight_decay'] = 0.
        if 'param_names' in options:
            options['param_names'] = [names[id(parameter)]
                                      for parameter in parameters]
        optimizer.add_param_group(dict(options, params=parameters))
    others.add(optimizer)
    return optimizer.param_groups[len(groups):]


def _check_movable(optimizer: Optimizer, members: dict,
                   home: Dict[int, int]) -> None:
    """Raise where groups are copies of those that are stepped: what is held
    would be stepped twice."""
    held = any(id(parameter) in home for parameters in members.values()
               for parameter in parameters)
    if held and any(cls.__name__ == 'ZeroRedundancyOptimizer'
                    for cls in type(optimizer).__mro__):
        raise ValueError(
            'a ZeroRedundancyOptimizer that was built with what quantizers '
            'learn cannot give it other options (no weight decay): convert '
            'the model after it, by GDRQHook(quantization=...) in the place '
            'of QuantizedModel')


def _warn_of_own_rates(state, groups: List[dict], members: dict,
                       home: Dict[int, int]) -> None:
    """Say so where learned parameters had another rate than their weight."""
    names = {id(parameter): name
             for name, parameter in learned_parameters(state).items()}
    rates = {key: groups[index].get('lr') for key, index in home.items()}
    own = [names[id(parameter)] for (index, _), parameters in members.items()
           for parameter in parameters
           if rates.get(id(parameter), groups[index].get('lr'))
           != groups[index].get('lr')]
    if own:
        warnings.warn(
            'the optimizer had another learning rate for '
            f'{and_more(own, "learned parameters of quantizers", 1)} than for '
            "their layers' weights (paramwise_cfg?), and has lr_mult times "
            'that now: set lr_mult of GDRQHook, or of '
            'add_learned_parameters, for all of them')


def _weight_beside(plan, plans: list, held: Container[int]
                   ) -> Optional[nn.Parameter]:
    """The weight that what a layer learns goes with.

    Args:
        plan (LayerPlan): The layer.
        plans (list[LayerPlan]): All layers.
        held (container of int): ``id`` of what an optimizer holds.
    """
    own = plan.parameter
    if own is not None and (own.requires_grad or id(own) in held):
        return own
    trained = [other for other in plans if other.parameter is not None
               and (other.parameter.requires_grad
                    or id(other.parameter) in held)]
    parts = plan.name.split('.')
    nearest = max(trained, default=None, key=lambda other: len(
        os.path.commonprefix([parts, other.name.split('.')])))
    return nearest and nearest.parameter


def check_learned_parameters(state, optimizer: Optimizer) -> None:
    """A learned parameter that no optimizer holds would stay a constant.

    Weight decay of step sizes is a warning.

    Args:
        state (QuantizationState): State of the model.
        optimizer (Optimizer): That steps parameters of the model.

    Raises:
        RuntimeError: It steps the weight of a layer, and neither it nor any
            other optimizer has what its quantizers learn; of a layer without
            a weight, or with a frozen one: it steps all weights of the model
            that are trained.
    """
    held = held_by(optimizer)
    trained = {id(plan.parameter) for plan in state.plans
               if plan.quantized and plan.parameter is not None
               and plan.parameter.requires_grad}
    missing = {}
    for plan in state.plans:
        own = id(plan.parameter)
        if own in held if own in trained else trained <= held:
            missing.update(
                (id(parameter), f'{plan.name}.{name}') for name, parameter
                in plan.learned_parameters().items()
                if id(parameter) not in held)
    # Another that has not stepped yet is known to nobody else.
    for other in gc.get_objects() if missing else ():
        if issubclass(type(other), Optimizer) and hasattr(
                other, 'param_groups'):
            for key in held_by(other):
                missing.pop(key, None)
    if missing:
        raise RuntimeError(
            f'{next(iter(missing.values()))} is learned, but the '
            f'{type(optimizer).__name__} that trains the model does not hold '
            'it: build the optimizer after quantize_, or call '
            'gdrq_mm.training.add_learned_parameters(get_state(model), '
            'optimizer) before its schedulers are built')
    _warn_of_decay(state, optimizer)


def held_by(optimizer: Optimizer) -> Set[int]:
    """``id`` of the parameters of an optimizer."""
    return {id(parameter) for group in optimizer.param_groups
            for parameter in group['params']}


def _warn_of_decay(state, optimizer: Optimizer) -> None:
    decayed = {id(parameter) for group in optimizer.param_groups
               if group.get('weight_decay') for parameter in group['params']}
    pulled = [f'{name}.{part}' for name, layer in state.layers.items()
              for part, quantizer in layer.quantizers() if not quantizer.decays
              for parameter in quantizer.learned_parameters()
              if id(parameter) in decayed]
    if pulled:
        warnings.warn(
            'weight decay pulls step sizes, or what else is learned, of '
            f'{and_more(pulled, "quantizers", 1)} towards zero: train with '
            'GDRQHook (with a FlexibleRunner, use paramwise_cfg=dict('
            "custom_keys={'_quantizer': dict(decay_mult=0.)})), or call "
            'gdrq_mm.training.add_learned_parameters(get_state(model), '
            'optimizer), which takes them out of it')


def keep_in_graph(x: Tensor, quantizer: nn.Module) -> Tensor:
    """``x``, on which what a quantizer learns depends, with no gradient.

    DistributedDataParallel waits for a gradient of every parameter, also in
    the steps in which a quantizer lets its input pass: before it knows a
    range, and before rounding begins.

    Args:
        x (Tensor): What the quantizer returned unchanged.
        quantizer (Quantizer): The quantizer, of a model in training.
    """
    if torch.is_grad_enabled():
        for parameter in quantizer.learned_parameters():
            x = x + 0 * parameter.sum()
    return x


def average_gradients_over_ranks(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients of parameters that a DDP wrapper does not know.

    It knows those that the model had when it was wrapped. All ranks must
    compute the gradient of at least one of them in each backward pass. What
    has no gradient on any rank gets none, so that no optimizer moves it.

    Args:
        parameters (iterable of Parameter): The same ones on all ranks.
    """
    parameters = list(parameters)
    # The backward pass whose end reduces them: one that fails has no end, and
    # the next one must not take it for its own.
    queued: List[int] = []

    def reduce() -> None:
        trained = [each for each in parameters if each.requires_grad]
        absent = [each.grad is None for each in trained]
        gradients = [torch.zeros_like(each) if each.grad is None
                     else each.grad for each in trained]
        present = gradients[0].new_tensor([not each for each in absent])
        flat = torch.cat([*(each.flatten() for each in gradients), present])
        dist.all_reduce(flat)
        *parts, present = flat.split(
            [*(each.numel() for each in trained), len(trained)])
        # Reading it waits for the device: not where all have a gradient here.
        elsewhere = present.tolist() if any(absent) else absent
        for parameter, part, is_absent, ranks in zip(
                trained, parts, absent, elsewhere):
            if ranks or not is_absent:
                parameter.grad = part.view_as(parameter) \
                    / dist.get_world_size()

    def once_a_backward(parameter: nn.Parameter) -> None:
        backward = torch._C._current_graph_task_id()
        if backward not in queued:
            queued[:] = [backward]
            torch.autograd.Variable._execution_engine.queue_callback(reduce)

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(once_a_backward)
