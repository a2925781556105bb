"""How a config asks for activations on running thresholds."""
from dataclasses import dataclass
from typing import Any, Dict, Optional

from ...errors import check
from ..schemes import ActivationScheme, is_number
from .defaults import check_k


@dataclass(frozen=True)
class ScaleClipActivationScheme(ActivationScheme):
    """How Scale-Clip quantizes activations.

    Args:
        type (str): Defaults to 'ScaleClip'.
        bits (int, optional): 2 to 8. Defaults to None: activations stay
            float.
        site (str): 'input' or 'relu', see :class:`ActivationScheme`. Defaults
            to 'input'.
        k (float, optional): With 'mean' and 'nonzero' ``T_a`` descends to
            ``k`` times that mean. Defaults to None: by bits and by the sign
            of the input.
        lr (float): Step of that descent per training step, 1e-6 to 1; not used
            with 'learned'. Defaults to 0.01.
        threshold (str): Where ``T_a`` descends to. 'mean': ``k * mean|A|``
            (Eq. 10), whose default ``k`` takes half of the values for zeros;
            'nonzero': the same of the values that are not zero, however many
            there are; 'mse': the threshold of least squared error of the
            batch, in one step of ten after the first hundred. 'learned': it
            starts at the last of these, and the optimizer moves it. Defaults
            to 'mse'.
        asymmetric (bool, optional): True: inputs with negative values get
            ``2^bits`` unsigned codes with a zero point, False: signed ones.
            Defaults to None: a zero point where negative values are small, as
            behind SiLU, GELU, hard-swish and LeakyReLU. Only 'mse' has it;
            other thresholds have signed codes.
    """
    k: Optional[float] = None
    lr: float = 0.01
    threshold: str = 'mse'
    asymmetric: Optional[bool] = None

    def __post_init__(self):
        super().__post_init__()
        check_k(self.k)
        check(is_number(self.lr) and 1e-6 <= self.lr <= 1, 'lr', self.lr,
              'a number from 1e-6 to 1')
        check(self.threshold in ('mean', 'nonzero', 'mse', 'learned'),
              'threshold', self.threshold,
              "'mean', 'nonzero', 'mse' or 'learned'")
        check(self.k is None or self.threshold in ('mean', 'nonzero'), 'k',
              self.k, f'with threshold={self.threshold!r}: None, as no mean '
              "is taken; threshold='nonzero' or 'mean' takes one")
        check(self.asymmetric is None or isinstance(self.asymmetric, bool),
              'asymmetric', self.asymmetric, 'True, False, or None for a zero '
              'point where negative values are small')
        check(not self.asymmetric or self.threshold == 'mse', 'asymmetric',
              self.asymmetric, f'with threshold={self.threshold!r}: None or '
              "False; threshold='mse' finds a zero point, type='LSQPlus' "
              'learns one')

    def options(self) -> Dict[str, Any]:
        options = super().options()
        names = dict(mse=['lr', 'asymmetric'], learned=[]).get(
            self.threshold, ['k', 'lr', 'threshold'])
        return {name: options[name] for name in names}

    def describe(self) -> str:
        text = self.basics()
        if self.threshold != 'mean':
            text += f', threshold {self.threshold}'
        return text + ', zero point' if self.asymmetric else text
