"""The ``quantization`` config: what is asked for, validated."""
from ..quantizers import ActivationScheme, WeightScheme
from .patterns import match_output
from .quantization import QuantConfig, Rule
from .schemes import ResidualScheme

__all__ = ['ActivationScheme', 'QuantConfig', 'ResidualScheme', 'Rule',
           'WeightScheme', 'match_output']
