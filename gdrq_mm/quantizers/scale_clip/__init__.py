"""Scale-Clip, the quantizer of GDRQ.

Paper: "Low-bit Quantization Needs Good Distribution" (Yu et al.), Sections
3.3 to 3.5 and Algorithm 1.
"""
from .activation import ScaleClipActivation
from .defaults import default_k, default_weight_k
from .learned import LearnedClipActivation
from .learned_weight import LearnedClipWeight
from .least_squares import LeastSquaresClipActivation
from .scheme import ScaleClipActivationScheme
from .weight import ScaleClipWeight, ScaleClipWeightScheme

ScaleClipActivation.KINDS.update(mse=LeastSquaresClipActivation,
                                 learned=LearnedClipActivation)
ScaleClipWeight.KINDS.update(learned=LearnedClipWeight)

__all__ = ['LearnedClipActivation', 'LearnedClipWeight',
           'LeastSquaresClipActivation', 'ScaleClipActivation',
           'ScaleClipActivationScheme', 'ScaleClipWeight',
           'ScaleClipWeightScheme', 'default_k', 'default_weight_k']
