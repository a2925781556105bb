"""How a model runs: training or eval mode, compiled or not."""
from contextlib import contextmanager

import torch
from torch import nn


def is_compiling() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` looks at this code."""
    if hasattr(torch.compiler, 'is_compiling'):  # torch >= 2.3
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()


def is_traced_by_dynamo() -> bool:
    """Whether ``torch.compile`` reads this code instead of running it."""
    if hasattr(torch.compiler, 'is_dynamo_compiling'):  # torch >= 2.3
        return torch.compiler.is_dynamo_compiling()
    return torch._dynamo.is_compiling()


@contextmanager
def eval_mode(model: nn.Module):
    """Put ``model`` in eval mode; afterwards every module is as before."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
