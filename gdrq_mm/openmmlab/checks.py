"""What of OpenMMLab bypasses quantized layers, found before it does harm."""
import logging
import re
from typing import List, Optional

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoint.keys import NAME
from ..modes import modes_restored
from ..quantizers.base import Quantizer
from ..training import get_state

SHARDING = ('FullyShardedDataParallel', 'DeepSpeedEngine',
            'MMDeepSpeedEngineWrapper', 'ColossalAIModelWrapper')


def check_model(model: nn.Module, cfg: Optional[dict] = None) -> None:
    """Refuse what reads weights other than in the layers' own forward.

    Raises:
        ValueError: Sharded weights, parts in wrappers of their own,
            ``efficient_conv_bn_eval`` or a normalization that is already
            fused into its convolution.
    """
    for cls in type(model).__mro__:
        if cls.__name__ in SHARDING:
            raise ValueError(
                f'the model is wrapped in {type(model).__name__}, which '
                'shards or flattens weights: group thresholds need whole '
                'weights. Use MMDistributedDataParallel.')
    if cfg is not None and cfg.get('efficient_conv_bn_eval'):
        raise ValueError(
            'efficient_conv_bn_eval is set in the config: it reads '
            'conv.weight past the quantizer. Remove it.')
    module = model.module if is_model_wrapper(model) else model
    for name, child in module.named_modules():
        if name and is_model_wrapper(child):
            raise ValueError(
                f'{name} is wrapped in {type(child).__name__} by itself '
                '(MMSeparateDistributedDataParallel does that): layers would '
                'have other names than in checkpoints. Use '
                'MMDistributedDataParallel around the whole model.')
        if getattr(child, 'efficient_conv_bn_eval_forward', None) is not None:
            raise ValueError(
                f'{name} uses efficient_conv_bn_eval, which reads '
                'conv.weight past the quantizer. Turn it off.')
        fused = _fused_norm(child)
        if fused:
            raise ValueError(
                f'{".".join(filter(None, [name, fused]))} is fused into its '
                'convolution (fuse_conv_bn): quantization-aware training '
                'needs it. Build the model without fusing.')


def check_entries(model: nn.Module) -> None:
    """Refuse models whose checkpoints could not be loaded.

    Args:
        model (nn.Module): The quantized model.

    Raises:
        ValueError: Its ``state_dict()`` leaves out or renames entries of
            quantizers.
    """
    kept = model.state_dict()
    entries = [f'{NAME}.schemes', *(
        f'{name}.{key}' for name, module in model.named_modules()
        if isinstance(module, Quantizer) for key in module.state_dict())]
    missing = [entry for entry in entries if entry not in kept]
    if missing:
        raise ValueError(
            f'the state_dict() of {type(model).__name__} has no {missing[0]} '
            f'({len(missing)} of {len(entries)} entries of quantizers are '
            'missing): hooks leave them out or rename them, as those of '
            'LoRAModel, TimmClassifier and HuggingFaceClassifier do. What is '
            'saved could not be loaded: quantize a model that saves all of '
            'its entries by their own names')


def check_hooks(hook: Hook, hooks: List[Hook], converted: bool) -> None:
    """Refuse hooks that disagree with the one that converts the model.

    Args:
        hook (Hook): The one that converts.
        hooks (list[Hook]): All of the run.
        converted (bool): Whether the model is quantized already.

    Raises:
        ValueError: There is a second one, or ``EMAHook`` comes before.
    """
    kind = type(hook).__name__
    number = sum(isinstance(other, type(hook)) for other in hooks)
    if number > 1:
        raise ValueError(f'the run has {number} {kind}s, each with phases of '
                         'its own; keep one in custom_hooks')
    for other in hooks:
        if not converted and getattr(other, 'ema_model', None) is not None:
            raise ValueError(
                f'{type(other).__name__} has copied the float model before '
                f'{kind} could convert it: give {kind} the higher priority '
                '(without priority=... it has VERY_HIGH)')


def check_begin(runner, begin_iter: int, begin_epoch: int) -> bool:
    """Whether rounding begins in this run; warns if not.

    Raises:
        ValueError: It begins by epoch in a run by iteration.
    """
    if begin_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
        raise ValueError(
            f'GDRQHook: begin_epoch={begin_epoch}, but the run is by '
            'iteration and has one epoch; use begin_iter')
    begins = begin_iter < runner.max_iters and begin_epoch < runner.max_epochs
    if not begins:
        print_log(
            'GDRQHook: rounding does not begin in this run '
            f'(begin_iter={begin_iter} of {runner.max_iters}, begin_epoch='
            f'{begin_epoch} of {runner.max_epochs}): it gives a reshaped '
            'float model', 'current', logging.WARNING)
    return begins


def _fused_norm(parent: nn.Module) -> Optional[str]:
    """Name of a child that fuse_conv_bn has put in place of a BN layer."""
    previous = None
    for name, child in parent.named_children():
        if (isinstance(child, nn.Identity) and isinstance(previous, nn.Conv2d)
                and previous.bias is not None
                and re.fullmatch(r'bn\d*', name)):
            return name
        previous = child
    return None


def check_quantized(model: nn.Module) -> None:
    """Raise a ValueError where nothing says how to quantize a model."""
    if get_state(model) is not None:
        return
    inside = [name for name, part in model.named_modules()
              if get_state(part) is not None]
    raise ValueError(
        'GDRQHook got no quantization, and ' + (
            f'of the model only {inside[0]} is a QuantizedModel: make the '
            'whole model one, and leave the rest float with rules, '
            'dict(match=..., skip=True)' if inside else
            'the model is not a QuantizedModel: give the hook '
            'quantization=dict(weight=dict(bits=4, ...), ...)'))


def frozen_norms(model: nn.Module) -> List[str]:
    """Names of BN layers that stay in eval mode while the model trains."""
    with modes_restored(model):
        model.train()
        return [name for name, child in model.named_modules()
                if isinstance(child, _BatchNorm) and not child.training]
