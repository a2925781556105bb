"""What of a state dict is the float model's, or one child's."""
from collections import defaultdict
from typing import Dict, List, Set

import torch
from torch import Tensor

from ..layers import QUANT_LAYERS
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
        CheckpointError: It is packed: there are no float weights in it; or
            its names begin with those of a wrapper.
    """
    schemes = read_schemes(state_dict)
    if schemes is None:
        _check_prefix(state_dict)
        return dict(state_dict)
    packed = [f'{layer}.{PACKED}'.lstrip('.') for layer in schemes]
    if not state_dict.keys().isdisjoint(packed):
        raise CheckpointError(
            'the checkpoint is packed: it holds codes and no float weights. '
            'Use the training checkpoint, or one published with --latent.')
    owners = {*schemes, *_second_names(state_dict, schemes)}
    inputs = _input_names()
    return {key: value for key, value in state_dict.items()
            if not key.startswith(f'{NAME}.')
            and owners.isdisjoint(_owners_of(key, inputs))}


def _check_prefix(state_dict: Dict[str, Tensor]) -> None:
    found = next((key for key in state_dict
                  if key.endswith(f'.{NAME}.schemes')), None)
    if found is not None:
        prefix = found.removesuffix(f'{NAME}.schemes')
        raise CheckpointError(
            f'the entries are those of a quantized model inside of another, '
            f'{prefix!r}: take its own by part_of(state_dict, {prefix!r})')


def _input_names() -> Set[str]:
    """Names of quantizers in layers, those of users' own among them."""
    return {name for layer in QUANT_LAYERS.values()
            for name in getattr(layer, 'input_names', ())}


def _owners_of(key: str, inputs: Set[str]) -> List[str]:
    """Names whose scheme would say that quantization added an entry."""
    parts = key.split('.')
    # Outputs have schemes of their own.
    return ['.'.join(parts[:end]) for place, part in enumerate(parts)
            for end in ((place, place + 1) if part in QUANTIZER_NAMES else
                        (place, ) if part in inputs else ())]


def _second_names(state_dict: Dict[str, Tensor], schemes: Dict[str, dict]
                  ) -> Set[str]:
    """Other names of converted layers (heads share convolutions): schemes
    have one name of each, and a state dict the same entries for all."""
    inputs = _input_names()
    candidates = {owner for key in state_dict
                  for owner in _owners_of(key, inputs)
                  if owner not in schemes}
    if not candidates:
        return set()
    entries: Dict[str, Dict[str, Tensor]] = defaultdict(dict)
    for key, value in state_dict.items():
        parts = key.split('.')
        for end in range(len(parts)):
            entries['.'.join(parts[:end])]['.'.join(parts[end:])] = value
    return {owner for owner in candidates for name in schemes
            if _are_equal(entries[owner], entries[name])}


def _are_equal(one: Dict[str, Tensor], other: Dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) for key, value in one.items())
