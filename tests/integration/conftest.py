"""What runs of several files need."""
import functools

import pytest
import torch
from mmengine.optim.optimizer import amp_optimizer_wrapper


@pytest.fixture
def amp(monkeypatch):
    """mmengine's AmpOptimWrapper, which asks for a GPU, on the CPU."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available',
                        lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler',
                        functools.partial(torch.amp.GradScaler, 'cpu'))
    # mmengine's own autocast allows bfloat16 only on a CPU.
    monkeypatch.setattr('mmengine.runner.amp.autocast', functools.partial(
        torch.autocast, 'cpu'))
