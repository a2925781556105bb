"""What of OpenMMLab bypasses quantized layers, found before it does harm."""
import re
from typing import List, Optional

from mmengine.model import is_model_wrapper
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

SHARDING = ('FullyShardedDataParallel', 'DeepSpeedEngine',
            'MMDeepSpeedEngineWrapper', 'ColossalAIModelWrapper')


def check_model(model: nn.Module, cfg: Optional[dict] = None) -> None:
    """Refuse what reads weights past the layers' own forward.

    Raises:
        ValueError: Sharded weights, ``efficient_conv_bn_eval`` or a
            normalization that is already fused into its convolution.
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


def frozen_norms(model: nn.Module) -> List[str]:
    """Names of BN layers that stay in eval mode while the model trains."""
    training = model.training
    model.train()
    frozen = [name for name, child in model.named_modules()
              if isinstance(child, _BatchNorm) and not child.training]
    model.train(training)
    return frozen
