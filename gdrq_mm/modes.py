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
def at_least_float32():
    """New tensors are float32 where the default is a dtype of fewer digits."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.promote_types(default, torch.float32))
    try:
        yield
    finally:
        torch.set_default_dtype(default)


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
