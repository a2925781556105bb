"""Quantization-aware training with GDRQ, as a hook of mmengine's runner."""
import logging
from typing import Optional

from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import FlexibleRunner

from ..convert import check_weights, quantize_
from ..errors import check
from ..quantizers import is_int, is_number
from ..training import DistillConfig, any_threshold, get_state, metrics
from .averaging import (
    average_what_was_added,
    sync_averages,
    warn_of_averaging,
)
from .checkpoint_watch import CheckpointWatchHook
from .checks import (
    check_begin,
    check_hooks,
    check_model,
    check_quantized,
)
from .distill import META, DistillHook
from .learned import train_learned_parameters
from .norm_statistics import NormStatisticsHook
from .resumed import phase_of
from .run_log import (
    log_evaluation,
    log_first_iteration,
    log_missing_steps,
    log_patches,
    log_plan,
)
from .scores import count_scores, forget_scores, hold_scores_back
from .wrappers import unwrap


@HOOKS.register_module()
class GDRQHook(CheckpointWatchHook):
    """Convert the model before the run, drive the phases, log.

    The model is converted before checkpoints are loaded and before
    ``EMAHook`` copies it; float checkpoints load as before.

    Args:
        quantization (dict, optional): What to quantize, see
            :class:`gdrq_mm.QuantConfig`. Defaults to None: the model is a
            ``QuantizedModel`` and says it itself.
        begin_iter (int): Iteration at which rounding begins. Before it, the
            float model is reshaped: weights and activations are clipped to
            their thresholds only, and validations count neither for
            ``save_best`` nor for early stopping. Defaults to 0.
        begin_epoch (int): The same by epoch; give one of the two. Defaults
            to 0.
        bn_batches (int): Recalibrate batch normalization, frozen layers
            included, with this many training batches when rounding begins and
            before every validation and checkpoint from then on; that of
            ``EMAHook`` as well. They come from a loader of their own.
            Defaults to 0: its statistics are those of the training.
        lr_mult (float): Learning rate of what quantizers learn (step sizes
            of LSQ and the like) over that of their layer's weight; where a
            scheduler ends at an absolute value (``eta_min``, not
            ``eta_min_ratio``), all end there. Defaults to 1.
        histograms (int): Iterations between two histograms of each layer's
            weights and inputs in the visualizer's backends. Such an iteration
            takes about twice as long. Defaults to 0: none.
        distill (dict): The float model teaches the quantized one, see
            :class:`DistillConfig`. Defaults to None: it does not.

    Raises:
        ValueError: Both begins are given or a number is negative, the model
            is not quantized and no ``quantization`` is given, the run uses
            something that bypasses quantized layers, it is resumed from
            one whose optimizer holds other parameters, or there is no
            teacher to distill from.

    Examples:
        >>> custom_imports = dict(imports=['gdrq_mm'])
        >>> custom_hooks = [dict(type='GDRQHook', quantization=dict(
        ...     weight=dict(bits=4), activation=dict(bits=4)))]
    """

    def __init__(self,
                 quantization: Optional[dict] = None,
                 begin_iter: int = 0,
                 begin_epoch: int = 0,
                 bn_batches: int = 0,
                 lr_mult: float = 1.,
                 histograms: int = 0,
                 distill: Optional[dict] = None) -> None:
        _check_numbers(lr_mult, begin_iter=begin_iter,
                       begin_epoch=begin_epoch, bn_batches=bn_batches,
                       histograms=histograms)
        self.quantization = quantization
        self.begin_iter = begin_iter
        self.begin_epoch = begin_epoch
        self.bn_batches = bn_batches
        self.lr_mult = lr_mult
        self.histograms = histograms
        self.distill = None if distill is None else DistillConfig.from_dict(
            _plain(distill))
        self.teaching: Optional[DistillHook] = None
        self.distributions: Optional[Hook] = None
        self.norms: Optional[NormStatisticsHook] = None
        # None before a run begins.
        self.state = self.found_phase = self.found_teacher = None

    def before_run(self, runner) -> None:
        """Convert the model."""
        log_patches()
        check_model(runner.model, runner.cfg)
        self.model = unwrap(runner.model)
        check_hooks(self, runner.hooks, get_state(self.model) is not None)
        if self.quantization is None:
            check_quantized(self.model)
        elif isinstance(runner, FlexibleRunner):
            # It loads checkpoints before this hook could convert the model.
            raise ValueError(
                'GDRQHook cannot convert the model of a FlexibleRunner, which '
                "loads checkpoints first: use model.type='QuantizedModel' and "
                'give the hook no quantization')
        else:
            report = quantize_(self.model, _plain(self.quantization))
            average_what_was_added(self.model)
            if get_state(self.model) is None:
                print_log('GDRQHook: nothing is quantized, no bits are asked '
                          f'for\n{report}', 'current', logging.WARNING)
        self.state = get_state(self.model)
        if self.state is None:
            check(self.distill is None, 'GDRQHook: distill', self.distill,
                  'None, as nothing is quantized')
            return
        train_learned_parameters(runner, self.state, self.lr_mult)
        # One hook may serve several runners.
        if self.distill and self.teaching not in runner.hooks:
            self.teaching = DistillHook(self.model, self.distill)
            runner.register_hook(self.teaching)
        if self.bn_batches and self.norms not in runner.hooks:
            self.norms = NormStatisticsHook(self.model, self.bn_batches)
            runner.register_hook(self.norms)
        if self.distributions not in runner.hooks:
            from .distributions import DistributionHook  # brings analysis
            self.distributions = DistributionHook(self.state, self.histograms)
            runner.register_hook(self.distributions)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Look at what a resumed run goes on with."""
        # A FlexibleRunner loads before it calls before_run.
        self.state = get_state(unwrap(runner.model))
        super().after_load_checkpoint(runner, checkpoint)
        if self.state is not None and runner._resume:
            self.found_phase = phase_of(checkpoint) or 'float'
            self.found_teacher = checkpoint.get('meta', {}).get(META, {})

    def before_train(self, runner) -> None:
        """Check the loaded weights; log what is quantized."""
        if self.state is None:
            return
        if self.teaching is not None:
            self.teaching.found = self.found_teacher
        self.found_teacher = None
        self.begins = check_begin(runner, self.begin_iter, self.begin_epoch)
        check_weights(self.state.plans)
        log_plan(self.model, self.state, self.bn_batches)
        warn_of_averaging(runner, self.model, self.bn_batches)
        self.interval = next((hook.interval for hook in runner.hooks
                              if isinstance(hook, LoggerHook)), 0)
        self.calls_checked = self.phase_entered = False
        self.iterations = 0
        super().before_train(runner)

    def before_train_iter(self, runner, batch_idx: int,
                          data_batch=None) -> None:
        """Enter the phase that is due."""
        if self.state is None:
            return
        begun = (runner.iter >= self.begin_iter
                 and runner.epoch >= self.begin_epoch)
        phase = 'quantize' if begun else 'reshape'
        if phase != self.state.phase or not self.phase_entered:
            self._enter(runner, phase)
        self.state.collect_clipped = _log_is_due(self, runner, batch_idx)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None,
                         outputs=None) -> None:
        """Hand the figures of this step to the log and the visualizer."""
        if self.state is None:
            return
        self.finite.see(runner.iter, outputs or {})
        if not self.calls_checked and any_threshold(self.state):
            self.calls_checked = True  # after the first optimizer step
            log_first_iteration(self.state)
            if self.iterations:  # steps that accumulate gradients
                forget_scores(runner, 'the model without thresholds')
        self.iterations += 1
        log_missing_steps(self.state, self.iterations, runner.optim_wrapper)
        if not self.state.collect_clipped:
            return
        for name, value in metrics(self.state).items():
            runner.message_hub.update_scalar(f'train/{name}', value)
        self.finite.report(runner.iter, weights=False)

    def _enter(self, runner, phase: str) -> None:
        before = self.state.phase if self.phase_entered else self.found_phase
        # One hook may serve several runners.
        self.phase_entered, self.found_phase = True, None
        self.state.set_phase(phase)
        sync_averages(runner, self.model)
        print_log(f'GDRQHook: phase {phase!r} from iteration {runner.iter} '
                  f'(epoch {runner.epoch}) on', 'current')
        if phase == 'reshape':
            if self.begins:
                hold_scores_back(runner)
            return
        count_scores(runner)
        if before in ('float', 'reshape'):
            forget_scores(runner, f'the {before} model')
        if before != 'quantize' and self.norms is not None:
            self.norms.fit(runner)

    def before_val_epoch(self, runner) -> None:
        if self.state is not None:
            sync_averages(runner, self.model)
            log_evaluation(self.state)

    def before_test_epoch(self, runner) -> None:
        if self.state is not None:
            log_evaluation(self.state)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.state is not None:
            sync_averages(runner, self.model)
        super().before_save_checkpoint(runner, checkpoint)


def _log_is_due(hook: GDRQHook, runner, batch_idx: int) -> bool:
    return bool(hook.interval) and (
        hook.every_n_inner_iters(batch_idx, hook.interval)
        or hook.end_of_epoch(runner.train_dataloader, batch_idx))


def _check_numbers(lr_mult: float, **integers: int) -> None:
    check(is_number(lr_mult) and 1e-6 <= lr_mult <= 1e6,
          'GDRQHook: lr_mult', lr_mult, 'a number from 1e-6 to 1e6')
    for name, value in integers.items():
        check(is_int(value) and value >= 0, f'GDRQHook: {name}', value,
              'an integer >= 0')
    if integers['begin_iter'] and integers['begin_epoch']:
        raise ValueError(
            f'GDRQHook: begin_iter={integers["begin_iter"]} and begin_epoch='
            f'{integers["begin_epoch"]} are both given; keep one')


def _plain(config) -> dict:
    """ConfigDict -> dict, so that no mmengine type gets into the model."""
    return config.to_dict() if hasattr(config, 'to_dict') else config
