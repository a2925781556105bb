"""Learned quantizer parameters in a runner whose optimizer was built before.

A hook converts the model when the optimizer, its schedulers and the
distributed wrapper are there already; all three have to hear of parameters
that come later.
"""
import logging
from typing import List

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import FlexibleRunner
from torch import nn

from ..errors import check
from ..training import (
    add_learned_parameters,
    average_gradients_over_ranks,
    learned_parameters,
)
from ..training.learned import decaying_parameters
from .wrappers import optim_wrappers, param_schedulers


def train_learned_parameters(runner, state, lr_mult: float) -> None:
    """Let the optimizer of a run train what quantizers learn.

    Args:
        runner (Runner): Before it loads or resumes.
        state (QuantizationState): State of its model.
        lr_mult (float): Their learning rate over that of their layer's
            weight.

    Raises:
        ValueError: ``lr_mult`` cannot act.
    """
    learned = learned_parameters(state)
    if not learned:
        if lr_mult != 1:
            print_log(f'GDRQHook: lr_mult={lr_mult} acts on nothing: no '
                      'quantizer of the model learns', 'current',
                      logging.WARNING)
        return
    if isinstance(runner, FlexibleRunner):  # its optimizer is loaded already
        check(lr_mult == 1, 'GDRQHook: lr_mult', lr_mult,
              '1 with a FlexibleRunner, whose optimizer has to hold learned '
              'parameters as it was built: use paramwise_cfg=dict(custom_keys='
              "{'_quantizer': dict(lr_mult=..., decay_mult=0.)})")
        return
    wrappers = optim_wrappers(runner)
    if not wrappers:  # in a test, where schedulers are configs still
        return
    schedulers = param_schedulers(runner)
    for name, wrapper in wrappers.items():
        groups = add_learned_parameters(state, wrapper.optimizer, lr_mult)
        for scheduler in schedulers.get(name, []):
            for group in groups:
                key = scheduler.param_name
                group.setdefault(f'initial_{key}', group.get(key))
            _extend(scheduler, groups, wrapper)
        if groups:
            print_log(
                f'GDRQHook: the optimizer{name and f" {name!r}"} trains '
                f'{sum(len(group["params"]) for group in groups)} learned '
                f'parameters of quantizers, lr_mult {lr_mult}, weight decay '
                + ', '.join(sorted({f'{group.get("weight_decay", 0.):g}'
                                    for group in groups})), 'current')
    if any(scheduler.param_name == 'weight_decay'
           for each in schedulers.values() for scheduler in each):
        runner.register_hook(UndecayedHook(state))
    if is_model_wrapper(runner.model):
        known = {id(parameter) for parameter in
                 getattr(runner.model, '_module_parameters', ())}
        late: List[nn.Parameter] = [
            parameter for parameter in learned.values()
            if id(parameter) not in known]
        if late:
            average_gradients_over_ranks(late)


class UndecayedHook(Hook):
    """Keeps a schedule of the weight decay, which moves all groups, from step
    sizes.

    Args:
        state (QuantizationState): State of the model that a run trains.
    """
    priority = 'VERY_HIGH'

    def __init__(self, state) -> None:
        self.state = state

    def before_train_iter(self, runner, batch_idx: int,
                          data_batch=None) -> None:
        decaying = decaying_parameters(self.state)
        learned = {id(parameter) for parameter
                   in learned_parameters(self.state).values()}
        for wrapper in optim_wrappers(runner).values():
            for group in wrapper.optimizer.param_groups:
                if {id(each) for each in group['params']} <= \
                        learned - decaying:
                    group['weight_decay'] = 0.


def _extend(scheduler, groups: List[dict], wrapper: OptimWrapper) -> None:
    """Tell a scheduler of added groups.

    What it keeps stands in the order of the wrapper's groups, of which the
    last one is none of the optimizer's where there is a ``paramwise_cfg``.
    """
    if hasattr(scheduler, 'base_values'):
        kept = scheduler.base_values
        values = [group[f'initial_{scheduler.param_name}']
                  for group in groups]
    else:  # ReduceOnPlateau: where each group ends
        kept = scheduler.min_values
        values = [min(kept)] * len(groups)
    at = len(kept) - (wrapper.base_param_settings is not None)
    kept[at:at] = values
