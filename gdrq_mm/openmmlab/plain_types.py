"""What torch's restricted unpickler may make of mmengine's checkpoints."""
from typing import Callable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler as OneCycle
from mmengine.utils import digit_version

# Older versions of torch load everything by default.
RESTRICTED = digit_version(torch.__version__) >= digit_version('2.6')


class _OneCycle:
    """Stands for the class of a OneCycleLR, of which a file gets but the
    function that its curve follows."""
    _annealing_cos = staticmethod(OneCycle._annealing_cos)
    _annealing_linear = staticmethod(OneCycle._annealing_linear)


ATTRIBUTES = {HistoryBuffer: ('min', 'max', 'mean', 'current'),
              _OneCycle: ('_annealing_cos', '_annealing_linear')}


def _function_of(cls: type, name: str):
    """``getattr``, but only for what a pickled HistoryBuffer or schedule asks
    of it."""
    if name not in ATTRIBUTES.get(cls, ()):
        raise ValueError(f'the checkpoint asks for {name!r} of {cls!r}, which '
                         'no log history and no schedule of mmengine needs; '
                         'do not trust it')
    return getattr(cls, name)


def allow_plain_types() -> Callable:
    """Let ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    Training checkpoints of mmengine 0.10 hold log histories: HistoryBuffer
    objects of numpy arrays; and with a OneCycleLR a static function of it.
    torch >= 2.6 refuses them by default, which breaks ``--resume`` and the
    test tools. All that is allowed here is plain data, and such a function;
    ``getattr``, which their pickles name as well, is replaced by a function
    that gives nothing else.
    """
    if not RESTRICTED:
        return lambda: None
    core = np._core if hasattr(np, '_core') else np.core
    plain = [HistoryBuffer, np.ndarray, np.dtype]
    plain += {type(np.dtype(kind)) for kind in '?bhilqBHILQefd'}
    # By the names that numpy 1 and numpy 2 write.
    renamed = [(getattr(core.multiarray, name), f'{module}.multiarray.{name}')
               for name in ('_reconstruct', 'scalar')
               for module in ('numpy.core', 'numpy._core')]
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(
        [*plain, *renamed, (_function_of, 'builtins.getattr'),
         (_OneCycle, f'{OneCycle.__module__}.{OneCycle.__qualname__}')])

    def undo():
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)

    return undo
