"""Every name that quantization adds to a checkpoint, and its format.

Which entries are ours is never told by their names alone, which a model may
have of its own: the schemes, an entry of the file, name the layers that were
converted.
"""
import json
import reprlib
from typing import Dict, Optional

import torch
from torch import Tensor, nn

from ..quantizers.base import Quantizer
from .errors import CheckpointError

NAME = 'quantization_state'  # the child of the converted model

# What converted layers add, as submodules.
QUANTIZER_NAMES = ('weight_quantizer', 'input_quantizer', 'key_quantizer',
                   'value_quantizer', 'site_quantizers', 'output_quantizer',
                   'product_quantizers')
PACKED = 'weight_packed'  # in published files, in the place of ``weight``

# Of published files; raised whenever an older gdrq_mm could no longer read
# what is written. 2: the digest covers the metadata.
FORMAT = 2
READABLE_FORMATS = (1, 2)

MAX_SCHEMES = 2**24  # bytes; a model of 10,000 layers has some 2^20


def is_stored(value) -> bool:
    """Whether a value is a plain tensor whose every element is in memory.

    One of a file may claim 2^30 elements by a stride of zero.
    """
    return (isinstance(value, Tensor) and value.layout == torch.strided
            and not value.is_quantized and not value.is_meta
            and value.numel() * value.element_size()
            <= value.untyped_storage().nbytes())


def encode_schemes(schemes: Dict[str, dict]) -> Tensor:
    """Schemes as an entry of a state dict: JSON, as bytes."""
    text = json.dumps(schemes, sort_keys=True).encode()
    return torch.tensor(list(text), dtype=torch.uint8)


def read_schemes(state_dict: dict, prefix: str = ''
                 ) -> Optional[Dict[str, dict]]:
    """Scheme of every converted layer, as a state dict says.

    Args:
        state_dict (dict): State dict of a whole model.
        prefix (str): Prefix of the model's entries in it. Defaults to ''.

    Returns:
        dict[str, dict], optional: None for a float one.

    Raises:
        CheckpointError: They are damaged.
    """
    key = f'{prefix}{NAME}.schemes'
    if key not in state_dict:
        return None
    encoded = state_dict[key]
    try:
        if not is_stored(encoded) or encoded.dtype != torch.uint8 \
                or encoded.dim() != 1 or len(encoded) > MAX_SCHEMES:
            raise ValueError
        schemes = json.loads(bytes(encoded.tolist()))
        if not isinstance(schemes, dict) or not all(
                isinstance(scheme, dict) for scheme in schemes.values()):
            raise ValueError
    except (ValueError, RecursionError):
        raise CheckpointError(
            f'the quantized checkpoint is damaged: its schemes ({key}) are '
            'no JSON of one dict a layer. Nothing was loaded.') from None
    return schemes


def check_schemes(theirs: Dict[str, dict], ours: Dict[str, dict]) -> None:
    """Refuse a checkpoint of another quantization.

    Args:
        theirs (dict[str, dict]): Scheme of every layer, of the checkpoint.
        ours (dict[str, dict]): Those of the model.

    Raises:
        CheckpointError: They differ; with some of the layers and both.
    """
    if ours == theirs:
        return
    differing = sorted(
        name for name in {*ours, *theirs}
        if ours.get(name) != theirs.get(name))
    shown = '\n'.join(
        f'  {name}: checkpoint {theirs.get(name, "float")}, '
        f'config {ours.get(name, "float")}' for name in differing[:5])
    more = f'\n  ... and {len(differing) - 5} more' * (len(differing) > 5)
    raise CheckpointError(
        'the checkpoint was trained with another quantization than the '
        f'config asks for, {len(differing)} layers differ:\n{shown}{more}'
        '\nUse the config it was trained with (the runner keeps a copy in '
        'its work_dir, a published file has one beside it). A field that it '
        'leaves out has the default of today: before 0.2.0 weight.levels was '
        "'odd' and activation.threshold 'mean'. To start a new training from "
        'its weights alone, make a float checkpoint of one not packed:\n'
        '  import torch\n'
        '  from gdrq_mm.checkpoint import float_weights\n'
        '  weights = torch.load(path, map_location="cpu")["state_dict"]\n'
        '  torch.save(dict(state_dict=float_weights(weights)), new_path)')


def added_later(model: nn.Module, state_dict: dict) -> Dict[str, Tensor]:
    """Quantization entries that a state dict lacks as a file may: one of an
    earlier version, or a published one where all of them are zero.

    Args:
        model (nn.Module): The converted model, or a part of it.
        state_dict (dict): Its state dict.

    Returns:
        dict[str, Tensor]: What they are, zeros; none where one is there.
    """
    later = {f'{name}.{key}' if name else key: torch.zeros_like(
        getattr(quantizer, key)) for name, quantizer in model.named_modules(
        remove_duplicate=False) if isinstance(quantizer, Quantizer)
        for key in quantizer.added_later}
    return {} if later.keys() & state_dict.keys() else later


def read_phase(state_dict: dict) -> int:
    """Index of the phase that a quantized model was saved in.

    Args:
        state_dict (dict): State dict of a whole quantized model.

    Raises:
        CheckpointError: It has none.
    """
    key = f'{NAME}.phase_index'
    index = state_dict.get(key)
    whole = is_stored(index) and not index.dim()
    if not whole or index.dtype != torch.int64 or int(index) not in (0, 1):
        shown = str(index) if whole else f'of shape {tuple(index.shape)}' \
            if isinstance(index, Tensor) else reprlib.repr(index)
        raise CheckpointError(
            f'the quantized checkpoint is damaged: its phase ({key}) is '
            f'{shown}, allowed: an int64 tensor of 0 (reshape) or 1 '
            '(quantize). Nothing was loaded.')
    return int(index)
