"""What a quantizer holds before anything was trained or loaded."""
from typing import Dict, Optional

import torch
from torch import Tensor, nn


def remember_start(quantizer: nn.Module) -> None:
    """Note the state-dict entries of a quantizer that was just built.

    Args:
        quantizer (nn.Module): A quantizer; of what is all zero nothing is
            kept.
    """
    quantizer._start = {
        key: value.detach().cpu().clone()
        for key, value in quantizer.state_dict().items()
        if isinstance(value, Tensor) and value.any()}


def start_of(quantizer: nn.Module) -> Dict[str, Tensor]:
    """State-dict entries as they were then, of the kind that they have now.

    Args:
        quantizer (nn.Module): A quantizer of a converted model.
    """
    start = getattr(quantizer, '_start', {})
    return {key: start[key].to(value, copy=True) if key in start
            else torch.zeros_like(value)
            for key, value in quantizer.state_dict().items()
            if isinstance(value, Tensor)}


def has_moved(quantizer: nn.Module) -> Optional[Tensor]:
    """Whether entries are not what they were then.

    Args:
        quantizer (nn.Module): A quantizer of a converted model.

    Returns:
        Tensor, optional: A bool scalar where the entries are; None where
        there are none.
    """
    start, state = start_of(quantizer), quantizer.state_dict()
    moved = [(state[key] != value).any() for key, value in start.items()]
    return torch.stack(moved).any() if moved else None
