"""Weights and biases as integer kernels read them."""
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..merge.layers import FLOAT32_EXACT, MergedLayer
from ..merge.ops import UINT8_OFFSET

INT16_MAX, INT32_MAX = 2**15 - 1, 2**31 - 1


@dataclass
class IntegerWeight:
    """Weight of a layer: ``codes * factor`` is what kernels compute with.

    Args:
        codes (Tensor): int8, of the layer's bits.
        factor (Tensor): int32, shape ``(num_filters, )``: makes the step of
            the int32 bias finer.
        bits (int): Bit width of the codes.
        stored (Tensor): int8 products, or uint8 with an offset of 128.
    """
    codes: Tensor
    factor: Tensor
    bits: int
    stored: Tensor


def store_integers(name: str, layer: MergedLayer, submodule: nn.Module,
                   container: str) -> IntegerWeight:
    """Write integer weight, scale and bias of a layer into the graph's
    submodule.

    Args:
        name (str): That of the layer.
        layer (MergedLayer): The layer.
        submodule (nn.Module): What the graph has in its place.
        container (str): What holds codes of activations, see
            :func:`to_integer`.

    Raises:
        ValueError: Sums of the layer may leave int32.
    """
    codes, grid = layer.weight.long(), layer.grid
    span = grid.high - grid.low  # activations are stored as 0 .. span
    channels = (-1, *[1] * (codes.dim() - 1))
    # Kernels on AVX2 add pairs of products in int16, and saturate.
    limit = 127 if container == 'int8' else min(
        127, INT16_MAX // (2 * max(span, 1)))
    most = max(limit // max(int(codes.abs().max()), 1), 1)
    step = layer.w_scale.double() * grid.scale
    bias = layer.bias.double()
    # Neither the bias nor a sum may leave int32.
    sums = span * codes.abs().flatten(1).sum(1)
    reach = bias.abs() / step + sums
    lost = reach > INT32_MAX  # next to this bias the weights are nothing
    beyond = lost & (256 * sums > reach)
    if bool(beyond.any()):
        worst = int((reach * beyond).argmax())
        raise ValueError(
            f'{name} sums {codes[0].numel()} products of {layer.bits}-bit '
            f'weights and inputs of {span + 1} codes (in filter {worst} up '
            f'to {sums[worst]:.3g}) and adds a bias of '
            f'{reach[worst] - sums[worst]:.3g}, which may leave int32; '
            'train it with fewer bits, or leave it float with '
            f'dict(match={name!r}, skip=True) in the rules')
    factor = (INT32_MAX / 2 / reach.clamp(min=1)).floor()
    codes = torch.where(lost.view(channels), 0, codes)
    factor = factor.clamp(1, most).int()
    # Inputs that are always zero leave the bias alone as well.
    alone = lost | (bias != 0) if span == 0 else lost
    step = torch.where(alone, bias.abs() / 2**20, step / factor)
    w_scale = (step / grid.scale).float()
    stored = (codes * factor.view(channels))
    bias = torch.round(bias / (w_scale.double() * grid.scale)).int()
    largest = span * stored.abs().flatten(1).sum(1) + bias.abs()
    submodule.wide = bool(largest.max() >= FLOAT32_EXACT)
    if int(stored.abs().max()) > limit and container == 'uint8':
        stored = (stored + UINT8_OFFSET).to(torch.uint8)
    else:
        stored = stored.to(torch.int8)
    submodule.weight, submodule.w_scale, submodule.bias = stored, w_scale, bias
    return IntegerWeight(codes.to(torch.int8), factor, layer.bits, stored)
