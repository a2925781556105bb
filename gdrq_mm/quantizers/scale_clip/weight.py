"""Weights on Scale-Clip thresholds (Eq. 7 to 9, Algorithm 1)."""
import dataclasses
import warnings
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple, Type

import torch
from torch import Tensor, nn

from ... import functional as F
from ... import kernels
from ...clip_search import search_clip
from ...errors import check
from ...kernels import Grid
from ..base import WeightQuantizer
from ..schemes import WeightScheme
from .codes import ClippedWeight, is_even
from .defaults import check_k, default_weight_k
from .kinds import kind_of


@dataclass(frozen=True)
class ScaleClipWeightScheme(WeightScheme):
    """How Scale-Clip quantizes weights.

    Args:
        type (str): Defaults to 'ScaleClip'.
        bits (int, optional): 1 to 8. Defaults to None: weights stay float.
        group_size (int): Filters that share a clip value; -1 for the whole
            layer. Defaults to 4.
        k (float, optional): ``T = k * mean|G|``; 2 reshapes towards the
            uniform distribution, less shrinks the weights. Defaults to None:
            by bits, 2 up to 3 bits and 3 from 4 on.
        clip (str): Where the clip values of quantization come from:
            'threshold' is ``T`` (Algorithm 1); 'search' is that of the least
            quantized loss (Eq. 12), whatever ``k`` is; 'learned' starts at
            ``T`` where rounding begins and is trained by gradient, as LSQ's
            step size is (2 to 8 bits). Defaults to 'threshold'.
        projection (bool): Reshape the stored weights: clip them in place to
            ``T`` after each optimizer step (with 'learned' until rounding
            begins). False: they keep their values, and only the forward sees
            them clipped (to ``T``, or to the searched or learned value).
            Defaults to True.
        levels (str): 'odd' is the paper's grid (Eq. 2), ``2^bits - 1`` levels
            with zero among them; 'even' has all ``2^bits``, none of them
            zero: 4 in place of 3 at 2 bits. It acts at 2 and 3 bits: from 4
            on one level more or less is little, and at 1 there are 2 either
            way. Defaults to 'even'.
    """
    k: Optional[float] = None
    clip: str = 'threshold'
    projection: bool = True
    levels: str = 'even'

    def __post_init__(self):
        super().__post_init__()
        check_k(self.k)
        check(self.clip in ('threshold', 'search', 'learned'), 'clip',
              self.clip, "'threshold', 'search' or 'learned'")
        check(self.bits != 1 or self.clip != 'learned', 'clip', self.clip,
              "at 1 bit 'threshold' or 'search', as the two levels are the "
              'mean of the weights')
        check(isinstance(self.projection, bool), 'projection',
              self.projection, 'True or False')
        check(self.levels in ('odd', 'even'), 'levels', self.levels,
              "'odd' or 'even'")
        if None not in (self.bits, self.k) and self.projection \
                and self.k < 2:
            warnings.warn(
                f'weight.k is {self.k}: below 2 every projection shrinks the '
                'weights towards zero; use k >= 2', stacklevel=3)

    def for_float_weights(self) -> WeightScheme:
        # T is right for weights that projections have brought into it. Of
        # others the same k clips as much at 8 bits as at 2.
        return dataclasses.replace(self, k=None, clip='search')

    def num_levels(self) -> int:
        return 2**self.bits - (self.bits > 1 and not is_even(
            self.levels, self.bits))

    def describe(self) -> str:
        text = self.basics()
        if self.clip != 'threshold':
            text += ', searched clip' if self.clip == 'search' else \
                ', learned clip'
        elif self.bits == 1:  # the level is clip / k
            text += f', k {self.k or default_weight_k(1)}'
        if is_even(self.levels, self.bits):
            text += f', {self.num_levels()} levels'
        return text if self.projection else text + ', no projection'


class ScaleClipWeight(ClippedWeight):
    """Quantize a weight, one clip value per group of filters.

    With ``clip='threshold'`` it is ``T = k * mean|G|`` of the last projection
    (:meth:`after_step`), so every trained weight lies inside its range. Until
    the first training step it is computed from the weight at hand.

    With ``clip='search'`` it is that of least quantized loss (Eq. 12), found
    at the first use and again every ``SEARCH_INTERVAL`` steps: the paper
    searches once and fine-tunes, but over a long training the weights leave
    that value behind, and a search at every step would cost more than the
    step. What is stored says how many steps there were, so that a resumed
    training searches when the uninterrupted one does.

    ``clip`` is a Parameter without gradient: model averaging then averages it
    together with the weights, and averaged weights stay inside averaged clip
    values.

    Args:
        num_filters (int): First dimension of the weight.
        bits (int): 1 to 8.
        group_size (int): Filters per group, -1 for the whole layer.
        k (float, optional): Threshold factor; 2 reshapes towards uniform.
            None: by bits, see :func:`default_weight_k`.
        clip (str): 'threshold' or 'search'. Defaults to 'threshold'.
        projection (bool): Clip the stored weights to ``T`` after each step.
            Otherwise they keep their values, and clipping acts in the forward
            only. Defaults to True.
        levels (str): 'odd' or 'even' number of levels. Defaults to 'even'.
    """

    Scheme = ScaleClipWeightScheme
    fused = True
    non_negative = ('clip', 'num_steps')
    SEARCH_INTERVAL = 100  # steps between two searches
    # What to build for other values of ``clip``; the package fills it.
    KINDS: Dict[str, Type[WeightQuantizer]] = {}

    def __init__(self, num_filters: int, bits: int, group_size: int,
                 k: Optional[float], clip: str = 'threshold',
                 projection: bool = True, levels: str = 'even') -> None:
        super().__init__(num_filters, bits, group_size, levels)
        self.k = default_weight_k(bits) if k is None else k
        self.searches = clip == 'search'
        self.projection = projection
        self.clip = nn.Parameter(
            torch.zeros(F.num_groups(num_filters, group_size)),
            requires_grad=False)
        self._known_set = False
        # Address and version of that weight.
        self._projected: Optional[Tuple[int, int]] = None
        self._steps: Optional[int] = None  # num_steps, once it was read
        if self.searches:
            self.register_buffer('num_steps', torch.zeros(
                (), dtype=torch.long))

    @classmethod
    def build(cls, scheme, num_filters: int) -> WeightQuantizer:
        kind = kind_of(cls, ScaleClipWeight, cls.KINDS, 'clip', scheme.clip)
        return kind(num_filters=num_filters, bits=scheme.bits,
                    group_size=scheme.group_size, **scheme.options())

    def learned_parameters(self) -> List[nn.Parameter]:
        # Not ``clip``, whatever a hook that unfreezes the model makes of it.
        return [each for each in super().learned_parameters()
                if each is not self.clip]

    def extra_repr(self) -> str:
        text = f'bits={self.bits}, group_size={self.group_size}, k={self.k}'
        text += ", clip='search'" if self.searches else ''
        text += ", levels='even'" if self.even else ''
        return text + ('' if self.projection else ', projection=False')

    def forget(self) -> None:
        self._known_set = False
        self._steps = None

    @torch.no_grad()
    def restart(self, trained: bool = True) -> None:
        # A momentum encoder inside the model averaged it from zero on, but
        # its weights from their values: T of these is right.
        if self.searches or not trained:
            self.clip.zero_()
            self.forget()

    def _is_set(self) -> bool:
        # Zero means "not set yet" (or a weight of zeros, for which computing
        # it anew gives zero again). Asked of the device only until it is set.
        if not self._known_set:
            self._known_set = bool(self.clip.any())
        return self._known_set

    def current_clip(self, weight: Tensor) -> Tensor:
        if not self._is_set():
            if not self.searches:
                return F.clip_threshold(
                    weight, self.k, self.group_size).float()
            self._search(weight)
        return self.clip.detach()

    @torch.no_grad()
    def _search(self, weight: Tensor) -> None:
        self.clip.copy_(search_clip(weight, self.bits, self.group_size,
                                    even=self.even))
        self._known_set = False

    def top_of_groups(self, clip: Tensor) -> Tensor:
        # At 1 bit the mean, sign(w) * mean|G|, which is clip / k where the
        # clip is T.
        return F.divide(clip, self.k) if self.bits == 1 \
            and not self.searches else clip

    def start_step(self, weight: Tensor) -> None:
        # Stored from the first training step on.
        if not self._is_set():
            with torch.no_grad():
                self.clip.copy_(self.current_clip(weight))

    @torch.no_grad()
    def after_step(self, weight: Tensor) -> None:
        """Clip the stored weight in place to new thresholds (Eq. 7 to 9).

        Only clipping the *stored* weights makes them uniform. Without
        ``projection`` the thresholds are new, and the weight stays.
        """
        clip = torch.empty_like(self.clip) if self.searches else self.clip
        if self.projection:
            kernels.project_(weight, clip, self.k, self.group_size)
        elif not self.searches:
            clip.copy_(F.clip_threshold(weight, self.k, self.group_size))
        if self.searches:
            self._count_step(weight)
        self._has_stepped(weight)

    @torch.no_grad()
    def share(self, other: WeightQuantizer, weight: Tensor) -> None:
        self.clip.copy_(other.clip)
        self._has_stepped(weight)

    def _has_stepped(self, weight: Tensor) -> None:
        # ``clip`` is that of ``weight`` as it is now.
        if not self._known_set and not self.searches:
            self._known_set = True
        if self.projection and not self.searches:
            self._projected = weight.data_ptr(), weight._version

    def _count_step(self, weight: Tensor) -> None:
        if self._steps is None:
            self._steps = int(self.num_steps)
        self._steps += 1
        self.num_steps += 1
        if self._steps % self.SEARCH_INTERVAL == 0:
            self._search(weight)

    def grid(self, weight: Tensor) -> Grid:
        return Grid(
            self.top_of_groups(self.current_clip(weight)), self.bits,
            group_size=self.group_size, even=self.even,
            # What was made in inference mode counts no changes.
            all_inside=not weight.is_inference() and self._projected == (
                weight.data_ptr(), weight._version))

    def packed_state(self, weight: Tensor) -> Dict[str, Tensor]:
        # Without training no clip value is stored yet.
        return dict(self.state_dict(), clip=self.current_clip(weight))

    def stored_clip(self, entries: Dict[str, Tensor]) -> Tensor:
        return entries['clip']

    def forward(self, weight: Tensor, rounding: bool = True) -> Tensor:
        if not rounding:  # the float model is reshaped
            return weight if self.projection or self.searches else \
                F.scale_clip(weight, self.current_clip(weight),
                             self.group_size)
        top = self.top(weight, self.current_clip(weight))
        return F.linear_quantize(weight, top, self.bits, even=self.even)
