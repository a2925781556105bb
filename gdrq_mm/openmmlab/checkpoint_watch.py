"""What is looked at wherever a quantized model is saved and resumed."""
import dataclasses
import functools
from typing import Callable, Optional

from mmengine.hooks import Hook
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

from ..training import DistillConfig, get_state
from .averaging import swap_no_more, swap_statistics_as_well
from .checks import check_entries
from .finite import FiniteWatch
from .reading import strip_wrapper_prefix
from .resumed import (
    META,
    check_optimizer,
    check_origin,
    is_of_another,
    log_differences,
    warn_of_nothing_to_resume,
)
from .wrappers import unwrap


class CheckpointWatchHook(Hook):
    """Look at the weights that a run saves, and at what it is resumed from.

    :class:`GDRQHook` is one. Where a ``QuantizedModel`` trains without it,
    :func:`watch_quantized_runs` registers this one: a run that has no phases
    has the settings below.
    """

    priority = 'VERY_HIGH'
    begin_iter = begin_epoch = bn_batches = 0
    lr_mult = 1.
    distill: Optional[DistillConfig] = None
    finite: Optional[FiniteWatch] = None
    trains = False

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Look at what a resumed run goes on with."""
        state = get_state(unwrap(runner.model))
        if state is not None:
            # The runner does so later, behind other hooks that load the
            # weights as well (EMAHook).
            strip_wrapper_prefix(checkpoint['state_dict'])
        if state is not None and runner._resume and self._is_due(runner):
            check_origin(runner, checkpoint)
            log_differences(checkpoint, self._settings(state),
                            type(self).__name__)
            # Of another quantization, weights are refused: it is the reason.
            if not is_of_another(checkpoint, state):
                check_optimizer(checkpoint, runner.optim_wrapper)

    def before_train(self, runner) -> None:
        """Look at the weights that a run begins with."""
        self.trains = True
        self._before_evaluations(runner)
        model = unwrap(runner.model)
        if get_state(model) is not None and self._is_due(runner):
            check_entries(model)
            warn_of_nothing_to_resume(runner)
            self.finite = FiniteWatch(model, type(self).__name__)
            self.finite.start()

    def _before_evaluations(self, runner) -> None:
        model = unwrap(runner.model)
        if get_state(model) is not None:
            swap_statistics_as_well(runner, model)

    def after_train(self, runner) -> None:
        self.trains = False
        swap_no_more(runner)

    def before_val(self, runner) -> None:
        if not self.trains:
            self._before_evaluations(runner)

    def after_val(self, runner) -> None:
        if not self.trains:
            swap_no_more(runner)

    def before_test(self, runner) -> None:
        self._before_evaluations(runner)

    def after_test(self, runner) -> None:
        swap_no_more(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Look at the weights; the settings go with them."""
        model = unwrap(runner.model)
        state = get_state(model)
        if state is not None and self._is_due(runner):
            if self.finite is None:
                self.finite = FiniteWatch(model, type(self).__name__)
            self.finite.report(runner.iter, weights=True)
            checkpoint['meta'][META] = self._settings(state)

    def _is_due(self, runner) -> bool:
        """Whether no GDRQHook, registered later, does the same."""
        return type(self) is not CheckpointWatchHook or not any(
            isinstance(hook, CheckpointWatchHook) and hook is not self
            for hook in runner.hooks)

    def _settings(self, state) -> dict:
        return dict(state.config.to_dict(), begin_iter=self.begin_iter,
                    begin_epoch=self.begin_epoch, bn_batches=self.bn_batches,
                    lr_mult=self.lr_mult,
                    distill=self.distill and dataclasses.asdict(self.distill))


def watch_quantized_runs() -> Callable:
    """Let runners whose model is quantized have a :class:`CheckpointWatchHook`
    where no GDRQHook is.

    Returns:
        callable: Takes it back.
    """
    before = {runner: runner.register_hooks
              for runner in (Runner, FlexibleRunner)}
    for runner, register in before.items():
        runner.register_hooks = _with_watch(register)

    def undo():
        for runner, register in before.items():
            runner.register_hooks = register

    return undo


def _with_watch(register_hooks: Callable) -> Callable:
    """A ``register_hooks`` that adds it."""

    @functools.wraps(register_hooks)
    def register(self, *args, **kwargs) -> None:
        register_hooks(self, *args, **kwargs)
        # A FlexibleRunner builds its model later.
        may_be = not isinstance(self.model, nn.Module) \
            or get_state(unwrap(self.model)) is not None
        if may_be and not any(isinstance(hook, CheckpointWatchHook)
                              for hook in self.hooks):
            self.register_hook(CheckpointWatchHook())

    return register
