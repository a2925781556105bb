"""What weights on clip values have in common, wherever these come from."""
from typing import Dict, Optional, Tuple

from torch import Tensor

from ... import functional as F
from ..base import WeightQuantizer


def is_even(levels: str, bits: int) -> bool:
    """Whether ``levels`` of a scheme acts at so many bits."""
    # The rule of 1 bit has two levels by itself.
    return levels == 'even' and 1 < bits <= F.MAX_EVEN_BITS


class ClippedWeight(WeightQuantizer):
    """A weight on equally spaced levels between clip values of its groups.

    Args:
        num_filters (int): First dimension of the weight.
        bits (int): 1 to 8.
        group_size (int): Filters per group, -1 for the whole layer.
        levels (str): 'odd' or 'even' number of levels.
    """

    def __init__(self, num_filters: int, bits: int, group_size: int,
                 levels: str) -> None:
        super().__init__(num_filters, bits, group_size)
        self.even = is_even(levels, bits)

    def current_clip(self, weight: Tensor) -> Tensor:
        """Clip values in force for ``weight``, shape ``(num_groups, )``,
        without a gradient."""
        raise NotImplementedError

    def stored_clip(self, entries: Dict[str, Tensor]) -> Tensor:
        """The same of state-dict entries."""
        raise NotImplementedError

    def top_of_groups(self, clip: Tensor) -> Tensor:
        """End of the grid of every group, shape ``(num_groups, )``."""
        return clip

    def top(self, weight: Tensor, clip: Tensor) -> Tensor:
        """The same of every filter, ready to broadcast."""
        return F.expand_clip(self.top_of_groups(clip), weight,
                             self.group_size)

    @property
    def code_step(self) -> int:
        return 2 if self.even or self.bits == 1 else 1

    @property
    def lowest_code(self) -> int:
        return 1 - 2**self.bits if self.code_step == 2 else \
            -F.num_levels(self.bits)

    @property
    def highest_code(self) -> int:
        return -self.lowest_code

    def codes(self, weight: Tensor) -> Tuple[Tensor, Tensor]:
        top = self.top(weight, self.current_clip(weight))
        return F.quantize_codes(weight.detach(), top, self.bits,
                                even=self.even)

    def decode(self, codes: Tensor, entries: Dict[str, Tensor]) -> Tensor:
        top = self.top(codes, self.stored_clip(entries))
        _, scale = F.quantize_codes(top, top, self.bits, even=self.even)
        return codes * scale

    def scalars(self, x: Optional[Tensor] = None) -> Dict[str, Tensor]:
        return dict(gdrq_weight_clip=self.current_clip(x).mean())
