"""Scale-Clip, the quantizer of GDRQ.

Paper: "Low-bit Quantization Needs Good Distribution" (Yu et al.), Sections
3.3 to 3.5 and Algorithm 1.
"""
from .activation import ScaleClipActivation, ScaleClipActivationScheme
from .defaults import default_k, default_weight_k
from .weight import ScaleClipWeight, ScaleClipWeightScheme

__all__ = ['ScaleClipActivation', 'ScaleClipActivationScheme',
           'ScaleClipWeight', 'ScaleClipWeightScheme', 'default_k',
           'default_weight_k']
