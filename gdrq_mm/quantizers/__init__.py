"""Quantizers by name: the ``type`` of ``weight=`` and ``activation=``."""
from typing import Dict, NamedTuple, Optional, Type

from .base import ActivationQuantizer, Quantizer, WeightQuantizer
from .code_range import CodeRange
from .direct import DirectQuantizationActivation, DirectQuantizationWeight
from .dorefa import DoReFaActivation, DoReFaWeight
from .lsq import LSQActivation, LSQWeight
from .lsq_plus import LSQPlusActivation, LSQPlusWeight
from .pact import PACTActivation
from .scale_clip import ScaleClipActivation, ScaleClipWeight
from .schemes import (
    DEFAULT_TYPE,
    ActivationScheme,
    WeightScheme,
    is_int,
    is_number,
)


class QuantizerPair(NamedTuple):
    """The weight and the activation quantizer that share a name.

    Args:
        weight (type, optional): A :class:`WeightQuantizer`.
        activation (type, optional): An :class:`ActivationQuantizer`.
    """
    weight: Optional[Type[WeightQuantizer]]
    activation: Optional[Type[ActivationQuantizer]]


QUANTIZERS: Dict[str, QuantizerPair] = {
    'ScaleClip': QuantizerPair(ScaleClipWeight, ScaleClipActivation),
    'LSQ': QuantizerPair(LSQWeight, LSQActivation),
    'LSQPlus': QuantizerPair(LSQPlusWeight, LSQPlusActivation),
    'PACT': QuantizerPair(DoReFaWeight, PACTActivation),
    'DoReFa': QuantizerPair(DoReFaWeight, DoReFaActivation),
    'DirectQuantization': QuantizerPair(DirectQuantizationWeight,
                                        DirectQuantizationActivation),
}

__all__ = ['ActivationQuantizer', 'ActivationScheme', 'CodeRange',
           'DEFAULT_TYPE', 'DirectQuantizationActivation',
           'DirectQuantizationWeight', 'DoReFaActivation', 'DoReFaWeight',
           'LSQActivation', 'LSQPlusActivation', 'LSQPlusWeight',
           'LSQWeight', 'PACTActivation', 'QUANTIZERS', 'Quantizer',
           'QuantizerPair', 'ScaleClipActivation', 'ScaleClipWeight',
           'WeightQuantizer', 'WeightScheme', 'is_int', 'is_number']
