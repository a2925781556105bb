"""What the log shows of a quantized model."""
from typing import Dict, List

import torch
from torch import Tensor

from ..functional import quantized_loss
from .state import PHASES, QuantizationState


def any_threshold(state: QuantizationState) -> bool:
    """Whether some activation threshold is set (or none is needed)."""
    quantizers = state.activation_quantizers.values()
    return not quantizers or any(q.initialized for q in quantizers)


@torch.no_grad()
def metrics(state: QuantizationState) -> Dict[str, float]:
    """Figures of the model as it stands; reads from the device.

    Returns:
        dict[str, float]: Means over layers: quantized loss of weights
        (Eq. 3), clipped fraction of activations (over the calls of all
        layers), what the quantizers have to say; the phase, 0 'reshape' or 1
        'quantize'.
    """
    found: Dict[str, List[Tensor]] = {}

    def add(**values: Tensor) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value)

    for layer in state.layers.values():
        quantizer = getattr(layer, 'weight_quantizer', None)
        if quantizer is not None:
            weight = layer.latent_weight
            add(gdrq_ql=quantized_loss(weight, quantizer(weight)),
                **quantizer.scalars(weight))
    for quantizer in state.activation_quantizers.values():
        add(**quantizer.scalars())
    for fraction in state.clipped:
        add(gdrq_clipped=fraction)
    state.clipped = []
    means = {name: float(torch.stack(values).mean())
             for name, values in found.items()}
    return dict(means, gdrq_phase=float(PHASES.index(state.phase)))
