"""Statistics of batch normalization that fit the weights of checkpoints.

Running statistics are those of the steps before, and of a model averaged by
``EMAHook`` those of other weights. Every validation and every checkpoint,
the best and the last one as well, gets statistics of its own weights.
"""
import logging

from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from torch import nn

from ..training import get_state, update_bn_stats
from .averaging import averaging_hooks, norm_statistics
from .calibrate import training_forwards


class NormStatisticsHook(Hook):
    """Recalibrate before validations and checkpoints, see ``bn_batches`` of
    :class:`GDRQHook`, which registers it.

    Its priority is that between ``EMAHook``, which averages and swaps
    weights, and ``CheckpointHook``, which saves them.

    Args:
        model (nn.Module): The quantized model.
        batches (int): Training batches to use.

    Raises:
        ValueError: The run trains without the config of a dataloader.
    """
    priority = 'LOW'

    def __init__(self, model: nn.Module, batches: int) -> None:
        self.model = model
        self.batches = batches
        self.fits = False  # the statistics fit the weights as they are
        self.trains = False

    def before_train(self, runner) -> None:
        if not runner.cfg.get('train_dataloader'):
            raise ValueError(
                f'GDRQHook: bn_batches={self.batches} needs the '
                'train_dataloader of a config to build a second one; build '
                'the runner with Runner.from_cfg, or call '
                'gdrq_mm.update_bn_stats yourself')
        if not any(True for _ in norm_statistics(self.model)):
            self.batches = 0
            print_log('GDRQHook: bn_batches acts on nothing: the model has no '
                      'batch normalization with running statistics',
                      'current', logging.WARNING)
        self.trains = True

    def after_train(self, runner) -> None:
        self.trains = False

    def after_train_iter(self, runner, batch_idx: int, data_batch=None,
                         outputs=None) -> None:
        self.fits = False
        if runner.iter + 1 == runner.max_iters or self._saves(
                runner, by_epoch=False):
            self.fit(runner)

    def after_train_epoch(self, runner) -> None:
        if self._saves(runner, by_epoch=True):
            self.fit(runner)

    def before_val_epoch(self, runner) -> None:
        if self.trains:
            self.fit(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.batches and not self.fits and \
                get_state(self.model).phase == 'quantize':
            print_log(
                'GDRQHook: a checkpoint is saved at an iteration that no '
                'CheckpointHook plans: its normalization statistics are '
                'those of the training, not recalibrated', 'current',
                logging.WARNING)

    def fit(self, runner) -> None:
        """Recalibrate the model and those that average it, once per step."""
        if self.fits or not self.batches or \
                get_state(self.model).phase != 'quantize':
            return
        for model in (self.model, *(hook.ema_model.module for hook in
                                    averaging_hooks(runner))):
            # Not the loader of the run, whose iterator may be in use, but its
            # data set, whose pipeline a hook may have switched.
            loader = runner.build_dataloader(
                dict(runner.cfg.train_dataloader,
                     dataset=_Uncopied(runner.train_dataloader.dataset)),
                seed=runner.seed)
            used = update_bn_stats(model, training_forwards(
                model, loader, self.batches))
        self.fits = True
        print_log(f'GDRQHook: batch normalization recalibrated with {used} '
                  'batches', 'current')

    def _saves(self, runner, by_epoch: bool) -> bool:
        """Whether a checkpoint is due now."""
        for hook in runner.hooks:
            if not isinstance(hook, CheckpointHook) \
                    or hook.by_epoch != by_epoch:
                continue
            due = hook.every_n_epochs if by_epoch else hook.every_n_train_iters
            last = hook.is_last_train_epoch if by_epoch else \
                hook.is_last_train_iter
            if due(runner, hook.interval, hook.save_begin) or (
                    hook.save_last and last(runner)):
                return True
        return False


class _Uncopied:
    """A data set that ``build_dataloader`` would copy with its config."""

    def __init__(self, dataset) -> None:
        self.dataset = dataset

    def __deepcopy__(self, memo):
        return self.dataset
