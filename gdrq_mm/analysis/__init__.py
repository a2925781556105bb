"""Look at what quantization does to a model."""
from .distributions import (
    ks_to_uniform,
    normalize_groups,
    plot_weight_distributions,
    weight_histogram,
)
from .ends import Ends, first_and_last
from .residuals import Residuals, residual_outputs, shortest_patterns

__all__ = ['Ends', 'Residuals', 'first_and_last', 'ks_to_uniform',
           'normalize_groups', 'plot_weight_distributions',
           'residual_outputs', 'shortest_patterns', 'weight_histogram']
