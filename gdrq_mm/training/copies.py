"""Copies of a model that average it, as ``EMAHook`` and others make them.

Of a quantizer that has no range yet they have copied zeros, and their average
with what comes later would be next to nothing: steps that do not happen
(accumulation, AMP overflow, the phase before rounding) leave it so for long.
"""
import dataclasses
from typing import Dict, Iterable, Optional, Set

import torch
from torch import Tensor, nn

from ..functional import to_float64
from ..quantizers.start import has_moved

LOOKS = 100  # steps in which an average moves


@dataclasses.dataclass
class Copied:
    """What is known of a copy, at first nothing.

    Args:
        ranges (set[str], optional): Quantizers that have a range.
        sums (Tensor, optional): The sum of each parameter that could train, as
            it was when the model that was copied first stepped.
        looks (int): How often that was looked at since then.
        averages (bool): Whether it has moved without an optimizer.
    """
    ranges: Optional[Set[str]] = None
    sums: Optional[Tensor] = None
    looks: int = 0
    averages: bool = False


@torch.no_grad()
def hand_on_ranges(state, live: Iterable, turned: Iterable[str]) -> None:
    """Give the copies of a model the ranges that were set since the last time.

    A copy is what ``copy.deepcopy`` made of it and no gradient trains: none
    is asked for (``EMAHook``), or its parameters move without a step of an
    optimizer (torch's ``AveragedModel``, averages written by hand). A copy
    that waits for a training of its own gets nothing.

    Args:
        state (QuantizationState): State of the model, which has stepped.
        live (iterable of QuantizationState): All there are.
        turned (iterable of str): Quantizers whose codes have come to be
            signed, which changed their range.
    """
    for other in live:
        if other.family != state.family or other is state:
            continue
        copied = other.copied
        if copied.ranges is None:  # it has not averaged anything yet
            copied.ranges = _with_range(_quantizers(other, called=False))
        copied.ranges -= set(turned)
        waiting = {name: quantizer for name, quantizer in
                   _quantizers(state, called=True).items()
                   if name not in copied.ranges}
        if not waiting or not _is_average(other):
            continue
        new = _with_range(waiting)
        theirs = _quantizers(other, called=False) if new else {}
        for name in new:
            theirs[name].load_state_dict(waiting[name].state_dict())
            theirs[name].forget()
        # Until its sign is settled a range may become another one.
        copied.ranges |= {name for name in new if getattr(
            waiting[name], 'settled', True)}


def _is_average(other) -> bool:
    copied = other.copied
    trained = [each for each in other.parameters_ if each.requires_grad]
    if not trained or copied.averages:
        return True
    # A look waits for the device: what has not moved by then may wait itself,
    # and is looked at more rarely.
    copied.looks += 1
    if other.has_stepped or copied.looks > LOOKS and copied.looks % LOOKS:
        return False
    sums = torch.stack([to_float64(each.detach()).sum().cpu()
                        for each in trained])
    if copied.sums is None:
        copied.sums = sums
    copied.averages = not torch.equal(sums, copied.sums)
    return copied.averages


def _quantizers(state, called: bool) -> Dict[str, nn.Module]:
    """All of a model, or those of the layers that were called: no others get
    a range."""
    return {f'{name}.{part}': quantizer
            for name, layer in state.layers.items()
            if not called or getattr(layer, 'called', True)
            for part, quantizer in layer.quantizers()}


def _with_range(quantizers: Dict[str, nn.Module]) -> Set[str]:
    """Names of those that have started: before that they hold what they were
    built with. Reads from the device once."""
    moved = {name: has_moved(quantizer)
             for name, quantizer in quantizers.items()}
    known = [each for each in moved.values() if each is not None]
    found = iter(torch.stack(known).tolist() if known else [])
    # What holds nothing has all that it will have.
    return {name for name, each in moved.items()
            if each is None or next(found)}
