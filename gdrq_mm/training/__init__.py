"""What happens to a converted model while it trains."""
from .batch_norm import update_bn_stats
from .calibrate import calibrate
from .state import PHASES, QuantizationState, get_state

__all__ = ['PHASES', 'QuantizationState', 'calibrate', 'get_state',
           'update_bn_stats']
