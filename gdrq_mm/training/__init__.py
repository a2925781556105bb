"""What happens to a converted model while it trains."""
from .batch_norm import update_bn_stats
from .calibrate import calibrate
from .distill import Distillation
from .distill_outputs import Branch, DistillConfig, Output, divergence
from .learned import (
    add_learned_parameters,
    average_gradients_over_ranks,
    learned_parameters,
)
from .metrics import any_threshold, metrics
from .state import PHASES, QuantizationState, get_state
from .step import step_, update_thresholds_

__all__ = ['Branch', 'DistillConfig', 'Distillation', 'Output', 'PHASES',
           'QuantizationState', 'add_learned_parameters', 'any_threshold',
           'average_gradients_over_ranks', 'calibrate', 'divergence',
           'get_state', 'learned_parameters', 'metrics', 'step_',
           'update_bn_stats', 'update_thresholds_']
