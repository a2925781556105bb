"""Quantization-aware training with GDRQ, as a hook of mmengine's runner."""
import logging
from typing import Optional

from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import FlexibleRunner, IterBasedTrainLoop
from torch import nn

from ..convert import check_weights, quantize_
from ..errors import check
from ..quantizers import is_number
from ..training import any_threshold, get_state, metrics, update_bn_stats
from .calibrate import training_forwards
from .checks import check_model
from .learned import train_learned_parameters
from .run_log import log_first_iteration, log_patches, log_plan


@HOOKS.register_module()
class GDRQHook(Hook):
    """Convert the model before the run, drive the phases, log.

    The model is converted before checkpoints are loaded and before
    ``EMAHook`` copies it; float checkpoints load as before.

    Args:
        quantization (dict, optional): What to quantize, see
            :class:`gdrq_mm.QuantConfig`. Defaults to None: the model is a
            ``QuantizedModel`` and says it itself.
        begin_iter (int): Iteration at which rounding begins. Before it, the
            float model is reshaped: weights and activations are clipped to
            their thresholds only. Defaults to 0.
        begin_epoch (int): The same by epoch; give one of the two. Defaults
            to 0.
        bn_batches (int): Recalibrate batch normalization, frozen layers
            included, with so many training batches when rounding begins and
            after the last iteration. They come from a loader of their own.
            Defaults to 0: its statistics are those of the training.

        lr_mult (float): Learning rate of what quantizers learn (step sizes
            of LSQ and the like) over that of their layer's weight. Defaults
            to 1.

    Raises:
        ValueError: Both begins are given or a number is negative, the model
            is not quantized and no ``quantization`` is given, or the run uses
            something that bypasses quantized layers.

    Examples:
        >>> custom_imports = dict(imports=['gdrq_mm'])
        >>> custom_hooks = [dict(type='GDRQHook', quantization=dict(
        ...     weight=dict(bits=4), activation=dict(bits=4)))]
    """

    priority = 'VERY_HIGH'

    def __init__(self,
                 quantization: Optional[dict] = None,
                 begin_iter: int = 0,
                 begin_epoch: int = 0,
                 bn_batches: int = 0,
                 lr_mult: float = 1.) -> None:
        check(is_number(lr_mult) and lr_mult > 0, 'GDRQHook: lr_mult',
              lr_mult, 'a number > 0')
        for name, value in (('begin_iter', begin_iter),
                            ('begin_epoch', begin_epoch),
                            ('bn_batches', bn_batches)):
            if not isinstance(value, int) or value < 0:
                raise ValueError(f'GDRQHook: {name} is {value!r}, allowed: '
                                 'an integer >= 0')
        if begin_iter and begin_epoch:
            raise ValueError(
                f'GDRQHook: begin_iter={begin_iter} and '
                f'begin_epoch={begin_epoch} are both given; keep one')
        self.quantization = quantization
        self.begin_iter = begin_iter
        self.begin_epoch = begin_epoch
        self.bn_batches = bn_batches
        self.lr_mult = lr_mult

    def before_run(self, runner) -> None:
        """Convert the model."""
        log_patches()
        check_model(runner.model, runner.cfg)
        self.model = _unwrap(runner.model)
        if self.quantization is None:
            if get_state(self.model) is None:
                raise ValueError(
                    'GDRQHook got no quantization and the model is none of '
                    'type QuantizedModel: give the hook '
                    'quantization=dict(weight=dict(bits=4, ...), ...)')
        elif isinstance(runner, FlexibleRunner):
            # It loads checkpoints before this hook could convert the model.
            raise ValueError(
                'GDRQHook cannot convert the model of a FlexibleRunner, which '
                "loads checkpoints first: use model.type='QuantizedModel' and "
                'give the hook no quantization')
        else:
            report = quantize_(self.model, _plain(self.quantization))
            if get_state(self.model) is None:
                print_log('GDRQHook: nothing is quantized, no bits are asked '
                          f'for\n{report}', 'current', logging.WARNING)
        self.state = get_state(self.model)
        if self.state is not None:
            train_learned_parameters(runner, self.state, self.lr_mult)

    def before_train(self, runner) -> None:
        """Check the loaded weights; log what is quantized."""
        if self.state is None:
            return
        self._check_begin(runner)
        if self.bn_batches and not runner.cfg.get('train_dataloader'):
            raise ValueError(
                f'GDRQHook: bn_batches={self.bn_batches} needs the '
                'train_dataloader of a config to build a second one; build '
                'the runner with Runner.from_cfg, or call '
                'gdrq_mm.update_bn_stats yourself')
        check_weights(self.state.plans)
        log_plan(self.model, self.state)
        loggers = [hook for hook in runner.hooks
                   if isinstance(hook, LoggerHook)]
        self.interval = loggers[0].interval if loggers else 0
        self.calls_checked = False

    def before_train_iter(self, runner, batch_idx: int,
                          data_batch=None) -> None:
        """Enter the phase that is due."""
        if self.state is None:
            return
        begun = (runner.iter >= self.begin_iter
                 and runner.epoch >= self.begin_epoch)
        phase = 'quantize' if begun else 'reshape'
        if phase != self.state.phase or runner.iter == 0:
            self.state.set_phase(phase)
            print_log(f'GDRQHook: phase {phase!r} from iteration '
                      f'{runner.iter} (epoch {runner.epoch}) on', 'current')
            if phase == 'quantize':
                self._update_bn_stats(runner)
        self.state.collect_clipped = self._log_is_due(runner, batch_idx)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None,
                         outputs=None) -> None:
        """Hand the figures of this step to the log and the visualizer."""
        if self.state is None:
            return
        if runner.iter + 1 == runner.max_iters:
            self._update_bn_stats(runner)
        if not self.calls_checked and any_threshold(self.state):
            self.calls_checked = True  # after the first optimizer step
            log_first_iteration(self.state)
        if not self.state.collect_clipped:
            return
        for name, value in metrics(self.state).items():
            runner.message_hub.update_scalar(f'train/{name}', value)

    def _update_bn_stats(self, runner) -> None:
        if not self.bn_batches:
            return
        # Not the loader of the run, whose iterator may be in use.
        loader = runner.build_dataloader(runner.cfg.train_dataloader,
                                         seed=runner.seed)
        used = update_bn_stats(self.model, training_forwards(
            self.model, loader, self.bn_batches))
        print_log(f'GDRQHook: batch normalization recalibrated with {used} '
                  'batches', 'current')

    def before_val_epoch(self, runner) -> None:
        self._sync_averaged_models(runner)
        self._warn_of_missing_thresholds()

    def before_test_epoch(self, runner) -> None:
        self._warn_of_missing_thresholds()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self._sync_averaged_models(runner)

    def _sync_averaged_models(self, runner) -> None:
        """Give EMA models the phase and the signs of the model.

        Where ``EMAHook`` averages buffers, it leaves those that hold no
        floats as it first copied them.
        """
        if self.state is None:
            return
        source = dict(self.model.named_buffers())
        for hook in runner.hooks:
            averaged = getattr(hook, 'ema_model', None)
            if averaged is None:
                continue
            for name, buffer in averaged.module.named_buffers():
                if 'quantiz' in name and not buffer.is_floating_point():
                    buffer.copy_(source[name])

    def _check_begin(self, runner) -> None:
        if self.begin_epoch and isinstance(runner.train_loop,
                                           IterBasedTrainLoop):
            raise ValueError(
                f'GDRQHook: begin_epoch={self.begin_epoch}, but the run is '
                'by iteration and has one epoch; use begin_iter')
        if self.begin_iter >= runner.max_iters \
                or self.begin_epoch >= runner.max_epochs:
            print_log(
                'GDRQHook: rounding does not begin in this run '
                f'(begin_iter={self.begin_iter} of {runner.max_iters}, '
                f'begin_epoch={self.begin_epoch} of {runner.max_epochs}): it '
                'gives a reshaped float model', 'current', logging.WARNING)

    def _log_is_due(self, runner, batch_idx: int) -> bool:
        return bool(self.interval) and (
            self.every_n_inner_iters(batch_idx, self.interval)
            or self.end_of_epoch(runner.train_dataloader, batch_idx))

    def _warn_of_missing_thresholds(self) -> None:
        if self.state is not None and not any_threshold(self.state):
            print_log(
                'no activation threshold is set yet: activations stay float '
                'in this evaluation. Load a trained quantized checkpoint, '
                'train, or call gdrq_mm.calibrate.', 'current',
                logging.WARNING)


def _unwrap(model: nn.Module) -> nn.Module:
    wrapped = is_model_wrapper(model) or isinstance(model, BaseTTAModel)
    return _unwrap(model.module) if wrapped else model


def _plain(config) -> dict:
    """ConfigDict -> dict, so that no mmengine type gets into the model."""
    return config.to_dict() if hasattr(config, 'to_dict') else config
