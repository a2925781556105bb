"""Activation thresholds from data, without training."""
import torch
from torch import nn

from ..modes import eval_mode, side_effects_undone
from .batch_norm import NO_BATCHES
from .state import get_state, quantizer_entries
from .step import update_thresholds_


@torch.no_grad()
def calibrate(model: nn.Module, forwards) -> int:
    """Set activation thresholds from data, without training.

    Every batch is looked through for negative values: one that has them makes
    the codes of that input signed, however late it comes.

    Args:
        model (nn.Module): A quantized model; in eval mode meanwhile.
        forwards (iterable of callables): Each runs the model on one batch,
            e.g. ``(lambda: model(x) for x in batches)``.

    Returns:
        int: Number of batches.

    Raises:
        ValueError: The model is not quantized, or no batch came.
    """
    state = get_state(model)
    if state is None:
        raise ValueError('calibrate needs a quantized model; call '
                         'gdrq_mm.quantize_(model, config) first')
    batches = 0
    state.calibrating = True
    try:
        with eval_mode(model), side_effects_undone(
                model, quantizer_entries(state)):
            for batches, forward in enumerate(forwards, 1):
                for quantizer in state.activation_quantizers.values():
                    quantizer.count_negatives()
                forward()
                update_thresholds_(state)
    finally:
        state.calibrating = False
    if not batches:
        raise ValueError(f'calibrate got no batches: {NO_BATCHES}')
    return batches
