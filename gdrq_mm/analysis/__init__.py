"""Look at what quantization does to a model."""
from .distributions import (ks_to_uniform, normalize_groups,
                            plot_weight_distributions, weight_histogram)

__all__ = ['ks_to_uniform', 'normalize_groups', 'plot_weight_distributions',
           'weight_histogram']
