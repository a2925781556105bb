"""What mmengine needs from current torch, and to know of this package."""
import numpy as np
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version


def _statistics_method(cls: type, name: str):
    """``getattr``, but only for what a pickled HistoryBuffer asks of it."""
    if cls is not HistoryBuffer or name not in ('min', 'max', 'mean',
                                                'current'):
        raise ValueError(f'the checkpoint asks for {name!r} of {cls!r}, which '
                         'no mmengine log history needs; do not trust it')
    return getattr(cls, name)


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    Training checkpoints of mmengine 0.10 hold log histories: HistoryBuffer
    objects of numpy arrays. torch >= 2.6 refuses them by default, which
    breaks ``--resume`` and the test tools. All that is allowed here is plain
    data; ``getattr``, which HistoryBuffer's pickle names as well, is replaced
    by a function that gives nothing else.
    """
    if digit_version(torch.__version__) < digit_version('2.6'):
        return  # loads everything by default
    core = np._core if hasattr(np, '_core') else np.core
    plain = [HistoryBuffer, np.ndarray, np.dtype]
    plain += {type(np.dtype(kind)) for kind in '?bhilqBHILQefd'}
    # By the names that numpy 1 and numpy 2 write.
    renamed = [(getattr(core.multiarray, name), f'{module}.multiarray.{name}')
               for name in ('_reconstruct', 'scalar')
               for module in ('numpy.core', 'numpy._core')]
    torch.serialization.add_safe_globals(
        [*plain, *renamed, (_statistics_method, 'builtins.getattr')])


def allow_gdrq_mm_configs() -> None:
    """Let configs inherit from ours: ``_base_ = 'gdrq_mm::...'``.

    mmengine looks for external configs in the packages of a table only, and
    takes a package's name for the registry scope of all that its configs
    name. Ours name modules of mmdet, mmseg and mmpretrain, as the user's own
    do: they have no scope.
    """
    MODULE2PACKAGE['gdrq_mm'] = 'gdrq_mm'
    find = Config._get_cfg_path

    def find_without_scope(cfg_path: str, filename: str):
        path, scope = find(cfg_path, filename)
        return path, None if scope == 'gdrq_mm' else scope

    Config._get_cfg_path = staticmethod(find_without_scope)
