"""What of a state dict is the float model's, or one child's."""
from typing import Dict

from torch import Tensor

from .errors import CheckpointError
from .integrity import open_seal
from .keys import (
    NAME,
    PACKED,
    QUANTIZER_NAMES,
    encode_schemes,
    read_schemes,
)


def part_of(state_dict: Dict[str, Tensor], prefix: str) -> Dict[str, Tensor]:
    """The entries of one child of a model, with their schemes.

    A part that loads alone is checked as the whole is.

    Args:
        state_dict (dict[str, Tensor]): State dict of the whole model, sealed
            or not; it is not changed.
        prefix (str): Prefix of the child's entries, such as ``backbone.``.

    Raises:
        CheckpointError: It is damaged.

    ``model.backbone.load_state_dict(part_of(weights, 'backbone.'))`` loads
    the backbone of a whole model's ``weights``.
    """
    state_dict = dict(state_dict)
    open_seal(state_dict, '', NAME)
    schemes = read_schemes(state_dict) or {}
    part = {key[len(prefix):]: value for key, value in state_dict.items()
            if key.startswith(prefix)}
    schemes = {name[len(prefix):]: scheme for name, scheme in schemes.items()
               if f'{name}.'.startswith(prefix)}
    if schemes and part:
        part[f'{NAME}.schemes'] = encode_schemes(schemes)
        part[f'{NAME}.phase_index'] = state_dict.get(f'{NAME}.phase_index')
    return part


def float_weights(state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The entries that the float model has, of one that is not packed.

    Args:
        state_dict (dict[str, Tensor]): State dict of a converted model; a
            float one comes back as it is.

    Raises:
        CheckpointError: It is packed: there are no float weights in it.
    """
    schemes = read_schemes(state_dict)
    if schemes is None:
        return dict(state_dict)
    packed = [f'{layer}.{PACKED}'.lstrip('.') for layer in schemes]
    if not state_dict.keys().isdisjoint(packed):
        raise CheckpointError(
            'the checkpoint is packed: it holds codes and no float weights. '
            'Use the training checkpoint, or one published with --latent.')
    return {key: value for key, value in state_dict.items()
            if not _is_added(key, schemes)}


def _is_added(key: str, schemes: Dict[str, dict]) -> bool:
    """Whether quantization added an entry to a model of these schemes."""
    parts = key.split('.')
    if parts[0] == NAME:
        return True
    for place, part in enumerate(parts):
        if part in QUANTIZER_NAMES:
            # Outputs have schemes of their own.
            owners = '.'.join(parts[:place]), '.'.join(parts[:place + 1])
            if not schemes.keys().isdisjoint(owners):
                return True
    return False
