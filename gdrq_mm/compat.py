"""What mmengine needs from current torch."""
import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    Training checkpoints of mmengine 0.10 hold log histories: HistoryBuffer
    objects of numpy arrays. torch >= 2.6 refuses them by default, which
    breaks ``--resume`` and the test tools. All these types are plain data.
    """
    if not hasattr(torch.serialization, 'add_safe_globals'):
        return  # torch < 2.4 does not restrict loading by default
    core = np._core if hasattr(np, '_core') else np.core
    dtypes = {type(np.dtype(kind)) for kind in '?bhilqBHILQefd'}
    torch.serialization.add_safe_globals([
        HistoryBuffer, np.ndarray, np.dtype, core.multiarray._reconstruct, core.multiarray.scalar,
        *dtypes])
