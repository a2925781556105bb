"""Scale-Clip quantizers of weights and activations.

Paper: "Low-bit Quantization Needs Good Distribution" (Yu et al.), Sections
3.3 to 3.5 and Algorithm 1.
"""
from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from .. import functional as F
from .. import kernels
from ..clip_search import search_clip
from ..kernels import Grid, eager

# Clip value over mean|x| with the least squared error for a half-normal
# distribution, by the number of levels above zero.
BEST_CLIP_OF_HALF_NORMAL = {
    1: 1.55, 3: 2.45, 7: 3.1, 15: 3.65, 31: 4.1, 63: 4.5, 127: 4.9, 255: 5.25}


def default_weight_k(bits: int) -> float:
    """Default ``k`` of weights: the paper's 2 up to 3 bits.

    From 4 bits on the levels reach further, and at 2 the reshaped weights
    lose more than they win (docs/results.md, "k of weights").
    """
    return 2. if bits <= 3 else 3.


def default_k(bits: int, signed: bool) -> float:
    """Default ``k_a`` of activations (the paper only says "large").

    Unsigned inputs are ReLU outputs: about half of them are zeros, which
    halves the mean, hence the factor 2.
    """
    best = BEST_CLIP_OF_HALF_NORMAL[F.num_levels(bits, signed)]
    return best if signed else 2 * best


class ScaleClipWeight(nn.Module):
    """Quantize a weight, one clip value a group of filters.

    With ``clip='threshold'`` it is ``T = k * mean|G|`` of the last projection
    (:meth:`project`), so every trained weight lies inside its range. Until
    the first training step it is computed from the weight at hand.

    With ``clip='search'`` it is that of least quantized loss (Eq. 12), found
    at the first use and anew every ``SEARCH_INTERVAL`` steps: the paper
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
        group_size (int): Filters a group, -1 for the whole layer.
        k (float, optional): Threshold factor; 2 reshapes towards uniform.
            None: by bits, see :func:`default_weight_k`.
        clip (str): 'threshold' or 'search'. Defaults to 'threshold'.
        projection (bool): Clip the stored weights to ``T`` after each step.
            Otherwise they keep their values, and clipping acts in the forward
            only. Defaults to True.
    """

    SEARCH_INTERVAL = 100  # steps between two searches

    def __init__(self, num_filters: int, bits: int, group_size: int,
                 k: Optional[float], clip: str = 'threshold',
                 projection: bool = True) -> None:
        super().__init__()
        self.bits = bits
        self.group_size = group_size
        self.k = default_weight_k(bits) if k is None else k
        self.searches = clip == 'search'
        self.projection = projection
        self.clip = nn.Parameter(
            torch.zeros(F.num_groups(num_filters, group_size)),
            requires_grad=False)
        self._known_set = False
        self._projected = None  # address and version of that weight
        self._steps: Optional[int] = None  # num_steps, once it was read
        if self.searches:
            self.register_buffer('num_steps', torch.zeros(
                (), dtype=torch.long))

    def extra_repr(self) -> str:
        text = f'bits={self.bits}, group_size={self.group_size}, k={self.k}'
        text += ", clip='search'" if self.searches else ''
        return text + ('' if self.projection else ', projection=False')

    def forget(self) -> None:
        """Look at ``clip`` anew: something else may have written to it."""
        self._known_set = False
        self._steps = None

    @torch.no_grad()
    def restart(self) -> None:
        """Search anew at the next use: another phase has begun."""
        if self.searches:
            self.clip.zero_()
            self.forget()

    def _is_set(self) -> bool:
        # Zero means "not set yet" (or a weight of zeros, for which computing
        # it anew gives zero again). Asked of the device only until it is set.
        if not self._known_set:
            self._known_set = bool(self.clip.any())
        return self._known_set

    def current_clip(self, weight: Tensor) -> Tensor:
        """Clip values in force for ``weight``, shape ``(num_groups, )``."""
        if not self._is_set():
            if not self.searches:
                return F.clip_threshold(
                    weight, self.k, self.group_size).float()
            self._search(weight)
        return self.clip.detach()

    @torch.no_grad()
    def _search(self, weight: Tensor) -> None:
        self.clip.copy_(search_clip(weight, self.bits, self.group_size))
        self._known_set = False

    def top_of_groups(self, clip: Tensor) -> Tensor:
        """Value of the largest code of every group, shape ``(num_groups, )``.

        The clip value; at 1 bit the mean, ``sign(w) * mean|G|``, which is
        ``clip / k`` where the clip is ``T``.
        """
        return clip / self.k if self.bits == 1 and not self.searches else clip

    def top(self, weight: Tensor, clip: Tensor) -> Tensor:
        """The same of every filter, ready to broadcast."""
        return F.expand_clip(self.top_of_groups(clip), weight,
                             self.group_size)

    def set_clip(self, weight: Tensor) -> None:
        """Store the clip values in force (at the start of training)."""
        if not self._is_set():
            with torch.no_grad():
                self.clip.copy_(self.current_clip(weight))

    @torch.no_grad()
    def project(self, weight: Tensor) -> None:
        """Clip the stored weight in place to new thresholds (Eq. 7 to 9).

        Called after each optimizer step: only clipping the *stored* weights
        makes them uniform. Without ``projection`` the thresholds are new, and
        the weight stays.
        """
        clip = torch.empty_like(self.clip) if self.searches else self.clip
        if self.projection:
            kernels.project_(weight, clip, self.k, self.group_size)
        elif not self.searches:
            clip.copy_(F.clip_threshold(weight, self.k, self.group_size))
        if self.searches:
            self._count_step(weight)
        self.has_stepped(weight)

    def has_stepped(self, weight: Tensor) -> None:
        """``clip`` is that of ``weight`` as it is now."""
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
        """What ``weight`` is quantized to."""
        return Grid(
            self.top_of_groups(self.current_clip(weight)), self.bits,
            group_size=self.group_size, all_inside=self._projected == (
                weight.data_ptr(), weight._version))

    def codes(self, weight: Tensor) -> Tuple[Tensor, Tensor]:
        """Integer codes of ``weight`` and the scale of every filter.

        Returns:
            tuple[Tensor, Tensor]: Codes (float32 holding integers), shaped
            like ``weight``, and scales of shape ``(num_filters, 1, ...)``.
        """
        top = self.top(weight, self.current_clip(weight))
        return F.quantize_codes(weight.detach(), top, self.bits)

    def dequantize(self, codes: Tensor, clip: Tensor) -> Tensor:
        """The weight that ``codes`` stand for.

        Args:
            codes (Tensor): Integers, shaped like the weight.
            clip (Tensor): Clip values, shape ``(num_groups, )``.
        """
        top = self.top(codes, clip)
        _, scale = F.quantize_codes(top, top, self.bits)
        return codes * scale

    def forward(self, weight: Tensor, rounding: bool = True) -> Tensor:
        if not rounding:  # the float model is reshaped
            return weight if self.projection or self.searches else \
                F.scale_clip(weight, self.current_clip(weight),
                             self.group_size)
        top = self.top(weight, self.current_clip(weight))
        return F.linear_quantize(weight, top, self.bits)


class ScaleClipActivation(nn.Module):
    """Quantize an activation with a running threshold ``T_a`` (Eq. 10, 11).

    ``T_a`` descends towards ``k * mean|A|``; Eq. 10 as printed has the wrong
    sign and diverges. A quantizer that has seen no data lets its input pass
    unchanged.

    Args:
        bits (int): 2 to 8.
        k (float, optional): Threshold factor. Defaults to None: by bits and
            sign, see :func:`default_k`.
        lr (float): Step of Eq. 10; the first steps average instead. Defaults
            to 0.01.
        headroom (float): Factor of the default ``k``, for tensors with longer
            tails than a half-normal distribution. Defaults to 1.
    """

    # Updates during which a negative value makes the input a signed one.
    SIGN_UPDATES = 10

    def __init__(self, bits: int, k: Optional[float], lr: float,
                 headroom: float = 1.) -> None:
        super().__init__()
        self.bits = bits
        self.k = k
        self.lr = lr
        self.headroom = headroom
        self.register_buffer('clip', torch.zeros(()))
        self.register_buffer('signed', torch.zeros((), dtype=torch.bool))
        self.register_buffer('num_updates', torch.zeros(
            (), dtype=torch.long))
        # What the forwards since the last update saw: sum |x|, number of
        # elements, sum of the negative minima.
        self.register_buffer('seen', torch.zeros(3), persistent=False)
        self._settled = False
        self._initialized = self._is_signed = False

    def extra_repr(self) -> str:
        text = f'bits={self.bits}, k={self.k}, lr={self.lr}'
        return text if self.headroom == 1 else \
            f'{text}, headroom={self.headroom}'

    def forget(self) -> None:
        """Look at the buffers anew: something else may have written them."""
        self._settled = False

    def _read(self) -> None:
        # Asked of the device only until the sign is settled.
        if not self._settled:
            updates = int(self.num_updates)
            self._initialized = updates > 0
            self._is_signed = bool(self.signed)
            self._settled = updates >= self.SIGN_UPDATES

    @property
    def initialized(self) -> bool:
        """Whether a threshold is there."""
        self._read()
        return self._initialized

    @property
    def settled(self) -> bool:
        """Whether there is a threshold whose sign stays as it is."""
        self._read()
        return self._settled

    @property
    def is_signed(self) -> bool:
        """Whether the input was seen to have negative values."""
        self._read()
        return self._is_signed

    def code_range(self) -> Tuple[float, int, int]:
        """Scale, least and greatest code of the threshold in force."""
        levels = F.num_levels(self.bits, self.is_signed)
        _, scale = F.quantize_codes(self.clip, self.clip, self.bits,
                                    self.is_signed)
        return float(scale), -levels if self.is_signed else 0, levels

    def k_of(self, signed: bool) -> float:
        return self.headroom * default_k(self.bits, signed) \
            if self.k is None else self.k

    def grid(self, seen: Optional[Tensor] = None) -> Optional[Grid]:
        """What an input is quantized to; None: it passes unchanged.

        Args:
            seen (Tensor, optional): Where statistics of the input go.
        """
        if not self.initialized:
            return None
        return Grid(self.clip, self.bits, self.is_signed, seen=seen)

    def observe_later(self, x: Tensor) -> Optional[Tensor]:
        """Where the statistics of ``x`` go if they are taken while it is
        quantized; None: they are taken now."""
        if self.settled:
            return self.seen
        self.observe(x)
        return None

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Add ``x`` to the statistics of the running step."""
        if x.numel() == 0:
            return
        x = x.detach()
        eager.see(self.seen, x)
        if not self._settled:
            self.seen[2] += x.amin().float().clamp(max=0)

    @torch.no_grad()
    def clipped_fraction(self, x: Tensor) -> Tensor:
        """Share of the non-zero elements beyond the threshold."""
        return (x.abs() > self.clip).sum() / x.count_nonzero().clamp(min=1)

    def forward(self, x: Tensor, rounding: bool = True) -> Tensor:
        if not self.initialized:
            return x
        if rounding:
            return F.linear_quantize(x, self.clip, self.bits, self.is_signed)
        clip = self.clip.to(x.dtype)
        return torch.clamp(
            x, -clip if self.is_signed else torch.zeros_like(clip), clip)
