"""Quantizers by name: the ``type`` of ``weight=`` and ``activation=``."""
from typing import Dict, NamedTuple, Optional, Type

from torch import nn

from .scale_clip import ScaleClipActivation, ScaleClipWeight


class QuantizerPair(NamedTuple):
    """The weight and the activation quantizer that share a name.

    Both are built with keyword arguments and used as those of Scale-Clip.

    Args:
        weight (type, optional): Takes ``num_filters, bits, group_size, k,
            clip, projection``, see :class:`ScaleClipWeight`; ``k`` may be
            None.
        activation (type, optional): Takes ``bits, k, lr`` and, for the
            outputs of ``residual``, ``headroom``, see
            :class:`ScaleClipActivation`.
    """
    weight: Optional[Type[nn.Module]]
    activation: Optional[Type[nn.Module]]


QUANTIZERS: Dict[str, QuantizerPair] = {
    'ScaleClip': QuantizerPair(ScaleClipWeight, ScaleClipActivation),
}

__all__ = ['QUANTIZERS', 'QuantizerPair', 'ScaleClipActivation',
           'ScaleClipWeight']
