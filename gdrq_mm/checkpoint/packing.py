"""Weights as codes of their true bit width, in a dense stream of bytes."""
import math
from typing import Dict, Optional, Tuple

import torch
from torch import Tensor, nn

from ..layers import check_layers_are_there
from ..training import get_state
from .errors import CheckpointError
from .integrity import seal
from .keys import NAME, PACKED, added_later


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Pack small integers, one little-endian bit stream per row.

    Args:
        values (Tensor): Integers ``0 .. 2^bits - 1``, shape (rows, columns).
        bits (int): 1 to 8.

    Returns:
        Tensor: uint8, shape ``(rows, ceil(columns * bits / 8))``.

    Examples:
        >>> pack_bits(torch.tensor([[1, 2, 3, 0, 1]]), bits=2)
        tensor([[57,  1]], dtype=torch.uint8)
    """
    # In bytes throughout: int64 would take 64 times the memory. In pieces of
    # as many bits as divide both a code and a byte.
    size = math.gcd(bits, 8)
    shifts = torch.arange(0, bits, size, dtype=torch.uint8,
                          device=values.device)
    pieces = ((values.to(torch.uint8)[..., None] >> shifts) & (2**size - 1)
              ).flatten(1)
    pieces = torch.nn.functional.pad(pieces,
                                     (0, -pieces.shape[1] % (8 // size)))
    return _joined(pieces.unflatten(1, (-1, 8 // size)), size)


def unpack_bits(packed: Tensor, bits: int, shape: Tuple[int, int]) -> Tensor:
    """Inverse of :func:`pack_bits`.

    Args:
        packed (Tensor): uint8, as :func:`pack_bits` gives it.
        bits (int): 1 to 8.
        shape (tuple[int, int]): Rows and columns of the values.

    Returns:
        Tensor: uint8, of that shape.

    Raises:
        ValueError: ``packed`` is not of the size that ``shape`` needs.
    """
    rows, columns = shape
    expected = (rows, -(-columns * bits // 8))
    if packed.dtype != torch.uint8 or tuple(packed.shape) != expected:
        raise ValueError(
            f'packed codes are {packed.dtype} of shape '
            f'{tuple(packed.shape)}, expected uint8 of shape {expected}')
    size = math.gcd(bits, 8)  # as in pack_bits
    shifts = torch.arange(0, 8, size, dtype=torch.uint8,
                          device=packed.device)
    pieces = ((packed[..., None] >> shifts) & (2**size - 1)).flatten(1)
    return _joined(pieces[:, :columns * bits // size].reshape(
        rows, columns, bits // size), size)


def _joined(pieces: Tensor, size: int) -> Tensor:
    """Join pieces of ``size`` bits along the last dimension, the lowest
    first."""
    first, *others = pieces.unbind(-1)
    for place, piece in enumerate(others, start=1):
        first = first | piece << place * size
    return first.contiguous()


def packed_shapes(model: nn.Module, shapes: Dict[str, tuple]
                  ) -> Dict[str, tuple]:
    """Shapes of the codes that :func:`pack_weights` puts in place of weights.

    Args:
        model (nn.Module): A quantized model.
        shapes (dict[str, tuple]): Shapes of its state dict; quantized weights
            are removed from it.
    """
    packed = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        quantizer = getattr(layer, 'weight_quantizer', None)
        if quantizer is not None:
            prefix = f'{name}.' if name else ''
            rows, *rest = shapes.pop(prefix + layer.weight_name)
            packed[f'{prefix}{PACKED}'] = (
                rows, -(-math.prod(rest) * quantizer.bits // 8))
    return packed


def pack_weights(layers: Dict[str, nn.Module],
                 state_dict: Dict[str, Tensor]) -> None:
    """Replace quantized weights in a state dict by their codes.

    ``X.weight`` (of attention, ``X.in_proj_weight``) becomes
    ``X.weight_packed`` (uint8, one stream per filter); its scales follow from
    the entries of ``X.weight_quantizer``.

    Args:
        layers (dict[str, nn.Module]): Layers of the model, by name.
        state_dict (dict[str, Tensor]): State dict of that model; changed in
            place.
    """
    for name, layer in layers.items():
        quantizer = getattr(layer, 'weight_quantizer', None)
        if quantizer is None:
            continue
        weight = layer.latent_weight.detach()
        prefix = f'{name}.' if name else ''
        indices = (quantizer.packed_codes(weight)
                   - quantizer.lowest_code) / quantizer.code_step
        _check_indices(name, quantizer, indices)
        del state_dict[prefix + layer.weight_name]
        state_dict[f'{prefix}{PACKED}'] = pack_bits(
            indices.flatten(1), quantizer.bits)
        for key, value in quantizer.packed_state(weight).items():
            state_dict[f'{prefix}weight_quantizer.{key}'] = value


def _check_indices(name: str, quantizer: nn.Module, indices: Tensor) -> None:
    """Another code than those that a quantizer tells of would be packed as
    one of them."""
    if not indices.numel():
        return
    low, high = map(float, torch.aminmax(indices))
    if low < 0 or high > 2**quantizer.bits - 1 or bool(
            (indices != indices.round()).any()):
        first, step = quantizer.lowest_code, quantizer.code_step
        raise ValueError(
            f'{name or "the model"} has weight codes from '
            f'{first + step * low:g} to {first + step * high:g}; its '
            f'{type(quantizer).__name__} says that they are {first}, '
            f'{first + step} .. {first + step * (2**quantizer.bits - 1)} at '
            f'{quantizer.bits} bits: correct its lowest_code or code_step. '
            'Nothing was packed')


def _indices(layer: nn.Module, packed: Tensor) -> Tensor:
    """Codes of a packed weight, counted from 0."""
    weight = layer.latent_weight
    return unpack_bits(packed, layer.weight_quantizer.bits,
                       (weight.shape[0], weight.shape[1:].numel()))


def check_codes(layer: nn.Module, packed: Tensor, key: str) -> None:
    """Refuse codes that no weight has.

    Args:
        layer (nn.Module): The quantized layer they are for.
        packed (Tensor): Its entry in a packed checkpoint.
        key (str): The name of the entry, for the message.

    Raises:
        CheckpointError: Codes are beyond the levels of the layer, or of
            another size.
    """
    quantizer = layer.weight_quantizer
    try:
        indices = _indices(layer, packed)
    except ValueError as error:
        raise CheckpointError(
            f'{key}: {error}; the checkpoint is of another architecture or '
            'quantization, or damaged. Nothing was loaded.') from error
    if not indices.numel():  # a layer without outputs
        return
    greatest = quantizer.lowest_code + quantizer.code_step * int(indices.max())
    if greatest > quantizer.highest_code:
        raise CheckpointError(
            f'{key} has code {greatest}, allowed at {quantizer.bits} bits: '
            f'{quantizer.lowest_code} to {quantizer.highest_code}. The file '
            'is damaged; nothing was loaded.')


def unpack_weight(layer: nn.Module, state_dict: Dict[str, Tensor],
                  prefix: str) -> None:
    """Replace packed codes in a state dict by the weight they stand for.

    Args:
        layer (nn.Module): The quantized layer that loads the state dict.
        state_dict (dict): Checked by :func:`check_codes`; changed in place.
        prefix (str): Prefix of the layer's entries in the state dict, with a
            dot at its end.
    """
    packed = state_dict.pop(f'{prefix}{PACKED}', None)
    if packed is None:
        return
    quantizer, weight = layer.weight_quantizer, layer.latent_weight
    codes = _indices(layer, packed).float()
    codes.mul_(quantizer.code_step).add_(quantizer.lowest_code)
    own = f'{prefix}weight_quantizer.'
    entries = {entry[len(own):]: value for entry, value in state_dict.items()
               if entry.startswith(own)}
    state_dict[prefix + layer.weight_name] = quantizer.decode(
        codes.view_as(weight), entries).to(weight.dtype)


@torch.no_grad()
def pack(model: nn.Module, meta: Optional[dict] = None) -> Dict[str, Tensor]:
    """State dict in which quantized weights are packed codes.

    It is sealed by a format version and a hash, so that a model loads all of
    it as it was written, or nothing.

    Args:
        model (nn.Module): A quantized and trained model.
        meta (dict, optional): What will stand beside it in the file, of
            primitive types; the hash covers it. Defaults to None.

    Returns:
        dict[str, Tensor]: On the CPU, to load with ``load_state_dict``
        (mmengine's included) into a model of the same quantization.

    Raises:
        ValueError: The model is not quantized, still in its float 'reshape'
            phase, or has lost quantized layers; a weight has codes that its
            quantizer does not tell of.
    """
    state = get_state(model)
    if state is None:
        raise ValueError('only a quantized model can be packed; convert it '
                         'with gdrq_mm.quantize_ and load its checkpoint')
    if state.phase != 'quantize':
        raise ValueError(f'the model is in its {state.phase!r} phase, its '
                         'weights are still float: train it through the '
                         "'quantize' phase first")
    check_layers_are_there(state, model)
    packed = dict(model.state_dict())
    # Under every name: a module may be registered twice.
    pack_weights(dict(model.named_modules(remove_duplicate=False)), packed)
    zeros = added_later(model, {})
    if not any(packed[key].any() for key in zeros):
        for key in zeros:  # each takes hundreds of bytes of a file
            del packed[key]
    packed = {key: value.detach().cpu().clone()
              for key, value in packed.items()}
    seal(packed, NAME, meta)
    return packed
