"""The first step whose loss is not finite, and the layer with such weights."""
import logging
from typing import List, Optional, Set

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import and_more


class FiniteWatch:
    """Warn once of losses and weights that are NaN or infinite.

    Losses are looked at on the device in every step; only
    :meth:`report` waits for it.

    Args:
        model (nn.Module): Whose weights to look at.
        name (str): Who warns.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model = model
        self.name = name
        self.warned = False
        self.known: Set[str] = set()
        self.first: Optional[Tensor] = None  # the step, -1: none so far

    def start(self) -> None:
        """A training begins: what is infinite now, such as the mask of an
        attention, may stay so."""
        self.known = set(self._not_finite())

    @torch.no_grad()
    def see(self, step: int, losses: dict) -> None:
        """Look at the loss of one step."""
        loss = losses.get('loss')  # the sum of all
        if self.warned or not isinstance(loss, Tensor):
            return
        finite = torch.isfinite(loss).all()
        if self.first is None:
            self.first = torch.full((), -1, device=finite.device)
        now = ~finite & (self.first < 0)
        self.first = torch.where(now, step, self.first)

    @torch.no_grad()
    def report(self, step: int, weights: bool) -> None:
        """Warn if there is something to warn of.

        Args:
            step (int): The iteration at hand.
            weights (bool): Look at the weights even if all losses were
                finite.
        """
        if self.warned:
            return
        first = -1 if self.first is None else int(self.first)
        if first < 0 and not weights:
            return
        names = [name for name in self._not_finite()
                 if name not in self.known]
        if first < 0 and not names:
            return
        self.warned = True
        loss = '' if first < 0 else \
            f'the loss is not finite since iteration {first}'
        where = '' if not names else (
            f'NaN or infinite values at iteration {step} in '
            f'{and_more(names, "entries", 1)}')
        print_log(
            f'{self.name}: {"; ".join(filter(None, (loss, where)))}. A '
            'checkpoint with such values cannot be published: stop, and '
            'resume from one before with a lower learning rate or with '
            'gradient clipping.', 'current', logging.WARNING)

    @torch.no_grad()
    def _not_finite(self) -> List[str]:
        return [name for name, value in self.model.state_dict().items()
                if value.is_floating_point()
                and not torch.isfinite(value).all()]
