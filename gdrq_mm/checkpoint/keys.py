"""Every name that quantization adds to a checkpoint, and its format."""
from typing import Dict

from torch import Tensor

NAME = 'quantization_state'  # the child of the converted model

# What converted layers add, as submodules.
QUANTIZER_NAMES = ('weight_quantizer', 'input_quantizer', 'site_quantizers',
                   'output_quantizer')

# Of published files; raised whenever an older gdrq_mm could no longer read
# what is written.
FORMAT = 1


def is_quantizer_entry(key: str) -> bool:
    """Whether a state-dict entry is none of the float model's."""
    return not {NAME, *QUANTIZER_NAMES}.isdisjoint(key.split('.'))


def is_packed(state_dict: Dict[str, Tensor]) -> bool:
    """Whether a state dict holds packed codes."""
    return any(key.endswith('weight_packed') for key in state_dict)
