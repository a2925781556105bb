"""Distillation in a run: the teacher of its model."""
import copy
import logging
import os
from typing import Optional

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from ..checkpoint import NAME, CheckpointError, digest
from ..training import Distillation, DistillConfig
from .head_outputs import find_head_outputs
from .publish import load_all
from .quantized_model import float_model_config
from .reading import read_checkpoint, weights_of

META = 'gdrq_mm_teacher'  # in the meta of training checkpoints


class DistillHook(Hook):
    """Keep the float model as teacher, see ``distill`` of :class:`GDRQHook`,
    which registers it.

    Args:
        model (nn.Module): The quantized model.
        config (DistillConfig): What was asked for.

    Attributes:
        found (dict, optional): What the checkpoint of a resumed run says of
            its teacher; GDRQHook reads it, as a FlexibleRunner loads before
            this hook is there.

    Raises:
        ValueError: There are no such outputs or no such teacher.
    """
    priority = 'VERY_HIGH'  # after GDRQHook, which is registered before

    def __init__(self, model: nn.Module, config: DistillConfig) -> None:
        self.model = model
        self.config = config
        self.found: Optional[dict] = None
        self.teacher: Optional[dict] = None

    def before_train(self, runner) -> None:
        if runner.cfg.get('compile'):
            raise ValueError(
                'GDRQHook: distill looks at modules inside the model, which '
                "torch.compile would compile anew in every step; remove the "
                "config's compile or the distillation")
        path = self._path(runner)
        teacher = build_teacher(runner.cfg, path)
        outputs, branches = find_head_outputs(teacher, self.config.outputs)
        self.teacher = dict(file=path, digest=digest(
            teacher.state_dict()).hex())
        self._compare_with_found()
        teacher.to(next(self.model.parameters()).device)
        self.distillation = Distillation(self.model, teacher, outputs,
                                         self.config, branches)
        # Deformable DETR computes what its losses need where the detector,
        # not its parts, is in training mode.
        teacher.training = True
        compared = '; '.join(f'{output.label}: {", ".join(output.modules)} '
                             f'({output.kind}, {output.weight:g})'
                             for output in outputs)
        print_log(f'GDRQHook: distills from {path}, weight '
                  f'{self.config.weight:g}, temperature '
                  f'{self.config.temperature:g}; {compared}', 'current')

    def before_train_iter(self, runner, batch_idx: int,
                          data_batch=None) -> None:
        self.distillation.start()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None,
                         outputs=None) -> None:
        self.distillation.stop()
        if not self.distillation.has_taught:
            raise RuntimeError(
                'GDRQHook: distill added no loss, as the train_step of '
                f'{type(self.model).__name__} does not get its losses from '
                "its forward, self(..., mode='loss'): let it call that, or "
                'remove distill')

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.teacher is not None:
            checkpoint['meta'][META] = self.teacher

    def _path(self, runner) -> str:
        """Checkpoint of the teacher; the same one after a resumption."""
        init = (runner.cfg.get('model') or {}).get('init_cfg') or {}
        if self.config.teacher:
            path = self.config.teacher
        elif self.found is not None:
            path = self.found.get('file')
        elif runner._load_from:
            path = runner._load_from
        else:  # of the whole model
            path = isinstance(init, dict) and init.get('checkpoint')
        if not path:
            raise ValueError(
                'GDRQHook: distill has no teacher, because '
                + ('the checkpoint that the run goes on from was trained '
                   'without one' if self.found is not None else
                   'the run starts from no checkpoint')
                + "; give the float model by distill=dict(teacher='FILE.pth')"
                + ('' if self.found is not None else ' or by load_from'))
        local = os.path.expanduser(path)
        return os.path.abspath(local) if os.path.exists(local) else path

    def _compare_with_found(self) -> None:
        before = (self.found or {}).get('digest')
        if before in (None, self.teacher['digest']):
            return
        what = (f'the teacher {self.teacher["file"]} has other weights than '
                'the one that the resumed run began with, '
                f'{self.found["file"]}')
        if not self.config.teacher:
            raise ValueError(f'GDRQHook: {what}; give that one by '
                             "distill=dict(teacher='FILE.pth')")
        print_log(f'GDRQHook: {what}', 'current', logging.WARNING)


def build_teacher(cfg, path: str) -> nn.Module:
    """The float model of a config with the weights of a checkpoint.

    Args:
        cfg (Config): Config of the run, with or without quantization.
        path (str): The checkpoint.

    Raises:
        ValueError: It cannot be read, is quantized or does not fit.
    """
    if not cfg.get('model'):
        raise ValueError('GDRQHook: distill builds the float model anew and '
                         'needs its config; build the runner with '
                         'Runner.from_cfg')
    try:
        content = read_checkpoint(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f'GDRQHook: the teacher of distill cannot be read: {error}'
        ) from error
    weights = weights_of(content)
    if f'{NAME}.schemes' in weights:
        raise ValueError(
            f'GDRQHook: {path} is quantized, so it is no teacher for '
            'distill; give the float model by '
            "distill=dict(teacher='FILE.pth')")
    with torch.random.fork_rng([]):  # the training draws as without a teacher
        model = copy.deepcopy(float_model_config(cfg.model))
        if cfg.get('data_preprocessor') is not None:
            model.setdefault('data_preprocessor',
                             copy.deepcopy(cfg.data_preprocessor))
        teacher = MODELS.build(model)
    names = teacher.state_dict().keys()
    try:
        load_all(teacher, {key: value for key, value in weights.items()
                           if key in names})
    except CheckpointError as error:
        raise ValueError(
            f'GDRQHook: {path} is no teacher for distill, it does not hold '
            f'all of the float model: {error}') from None
    return teacher
