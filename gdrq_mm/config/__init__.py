"""The ``quantization`` config: what is asked for, validated."""
from .quantization import QuantConfig, Rule
from .schemes import ActivationScheme, ResidualScheme, WeightScheme

__all__ = ['ActivationScheme', 'QuantConfig', 'ResidualScheme', 'Rule',
           'WeightScheme']
