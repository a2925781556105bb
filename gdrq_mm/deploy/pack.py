"""Packed checkpoints: small files that give the very same outputs."""
from typing import Dict

import torch
from torch import Tensor, nn

from ..integrity import seal
from ..packing import pack_weights
from ..state import NAME, get_state


@torch.no_grad()
def pack(model: nn.Module) -> Dict[str, Tensor]:
    """State dict in which quantized weights are packed codes.

    It is sealed by a format version and a hash, so that a model loads all of
    it as it was written, or nothing.

    Args:
        model (nn.Module): A quantized and trained model.

    Returns:
        dict[str, Tensor]: On the CPU, to load with ``load_state_dict``
        (mmengine's included) into a model of the same quantization.

    Raises:
        ValueError: The model is not quantized, or still in its float
            'reshape' phase.
    """
    state = get_state(model)
    if state is None:
        raise ValueError('only a quantized model can be packed; convert it '
                         'with gdrq_mm.quantize_ and load its checkpoint')
    if state.phase != 'quantize':
        raise ValueError(f'the model is in its {state.phase!r} phase, its '
                         'weights are still float: train it through the '
                         "'quantize' phase first")
    packed = dict(model.state_dict())
    # Under every name: a module may be registered twice.
    pack_weights(dict(model.named_modules(remove_duplicate=False)), packed)
    packed = {key: value.detach().cpu().clone()
              for key, value in packed.items()}
    seal(packed, NAME)
    return packed
