"""What is asked for weights, activations and outputs: validated values."""
import warnings
from dataclasses import dataclass
from typing import Any, Optional, Tuple

from ..quantizers import QUANTIZERS
from .errors import check, did_you_mean


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_int(value)


@dataclass(frozen=True)
class WeightScheme:
    """How weights are quantized.

    Args:
        type (str): Name in ``QUANTIZERS``. Defaults to 'ScaleClip'.
        bits (int, optional): 1 to 8. Defaults to None: weights stay float.
        group_size (int): Filters that share a clip value; -1 for the whole
            layer. Defaults to 4.
        k (float, optional): ``T = k * mean|G|``; 2 reshapes towards the
            uniform distribution, less shrinks the weights. Defaults to None:
            by bits, 2 up to 3 bits and 3 from 4 on.
        clip (str): Where the clip values of quantization come from:
            'threshold' is ``T`` (Algorithm 1); 'search' is that of the least
            quantized loss (Eq. 12), whatever ``k`` is. Defaults to
            'threshold'.
        projection (bool): Reshape the stored weights: clip them in place to
            ``T`` after each optimizer step. False: they keep their values,
            and only the forward sees them clipped (to ``T``, or to the
            searched value). Defaults to True.
    """
    type: str = 'ScaleClip'
    bits: Optional[int] = None
    group_size: int = 4
    k: Optional[float] = None
    clip: str = 'threshold'
    projection: bool = True

    def __post_init__(self):
        _check_type('weight', 'weight', self.type)
        check(self.bits is None or _is_int(self.bits) and 1 <= self.bits <= 8,
              'weight.bits', self.bits, '1 to 8, or None for float')
        check(_is_int(self.group_size)
              and (self.group_size >= 1 or self.group_size == -1),
              'weight.group_size', self.group_size,
              'a number of filters >= 1, or -1 for the whole layer')
        _check_k('weight', self.k)
        check(self.clip in ('threshold', 'search'), 'weight.clip', self.clip,
              "'threshold' or 'search'")
        check(isinstance(self.projection, bool), 'weight.projection',
              self.projection, 'True or False')
        if None not in (self.bits, self.k) and self.projection \
                and self.k < 2:
            warnings.warn(
                f'weight.k is {self.k}: below 2 every projection shrinks the '
                'weights towards zero; use k >= 2', stacklevel=3)


@dataclass(frozen=True)
class ActivationScheme:
    """How activations are quantized.

    Args:
        type (str): Name in ``QUANTIZERS``. Defaults to 'ScaleClip'.
        bits (int, optional): 2 to 8. Defaults to None: activations stay
            float.
        k (float, optional): ``T_a`` descends to ``k * mean|A|``. Defaults to
            None: by bits and by the sign of the input.
        lr (float): Step of that descent a training step, in (0, 1]. Defaults
            to 0.01.
        site (str): 'input': at the input of each quantized layer; 'relu': at
            the output of each ReLU, one threshold a call site, where layers
            that read no ReLU output fall back to 'input'. Defaults to
            'input'.
    """
    type: str = 'ScaleClip'
    bits: Optional[int] = None
    k: Optional[float] = None
    lr: float = 0.01
    site: str = 'input'

    def __post_init__(self):
        check(self.bits is None or _is_activation_bits(self.bits),
              'activation.bits', self.bits, '2 to 8, or None for float')
        _check_threshold('activation', self)
        check(self.site in ('input', 'relu'), 'activation.site', self.site,
              "'input' or 'relu'")


@dataclass(frozen=True)
class ResidualScheme:
    """Which module outputs are quantized whatever reads them, and how.

    Integer kernels give 8 bits where more than one quantizer reads a tensor
    (residual sums and what goes into them). Named here, such tensors are
    rounded in training already; else the export rounds them afterwards.
    ``tools/analyze.py residuals`` prints the names.

    Args:
        type (str): Name in ``QUANTIZERS``. Defaults to 'ScaleClip'.
        bits (int): 2 to 8. Defaults to 8.
        k (float, optional): As of :class:`ActivationScheme`. Defaults to
            None: three times the default of activations.
        lr (float): Likewise. Defaults to 0.01.
        outputs (sequence of str): Modules that return one tensor, or patterns
            whose ``*`` stands for one part of a dotted name. Must be given;
            of none, nothing is quantized.
    """
    type: str = 'ScaleClip'
    bits: int = 8
    k: Optional[float] = None
    lr: float = 0.01
    outputs: Tuple[str, ...] = None

    def __post_init__(self):
        check(_is_activation_bits(self.bits), 'residual.bits', self.bits,
              '2 to 8')
        _check_threshold('residual', self)
        check(isinstance(self.outputs, (list, tuple)) and all(
            isinstance(name, str) and name for name in self.outputs),
            'residual.outputs', self.outputs,
            'a list of module names or patterns such as "backbone.layer*.*" '
            '("python tools/analyze.py residuals CONFIG" prints it)')
        object.__setattr__(self, 'outputs', tuple(self.outputs))

    def activation(self) -> ActivationScheme:
        """The scheme of each of these quantizers."""
        return ActivationScheme(self.type, self.bits, self.k, self.lr)


def _is_activation_bits(value: Any) -> bool:
    return _is_int(value) and 2 <= value <= 8


def _check_threshold(where: str, scheme) -> None:
    """What the schemes of activations and of outputs have in common."""
    _check_type(where, 'activation', scheme.type)
    _check_k(where, scheme.k)
    check(_is_number(scheme.lr) and 0 < scheme.lr <= 1, f'{where}.lr',
          scheme.lr, 'a number in (0, 1]')


def _check_k(where: str, k: Any) -> None:
    check(k is None or _is_number(k) and 0 < k < float('inf'), f'{where}.k',
          k, 'a positive number, or None for the default of the bits')


def _check_type(where: str, side: str, name: str) -> None:
    names = [key for key, pair in QUANTIZERS.items() if getattr(pair, side)]
    if name not in names:
        raise ValueError(f'{where}.type is {name!r}, which is no {side} '
                         f'quantizer; {did_you_mean(str(name), names)}')
