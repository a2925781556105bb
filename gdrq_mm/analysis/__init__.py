"""Look at what quantization does to a model."""
from .distributions import (ks_to_uniform, normalize_groups,
                            plot_weight_distributions, weight_histogram)
from .ends import Ends, first_and_last

__all__ = ['Ends', 'first_and_last', 'ks_to_uniform', 'normalize_groups',
           'plot_weight_distributions', 'weight_histogram']
