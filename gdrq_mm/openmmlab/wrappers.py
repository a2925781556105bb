"""What mmengine and mmdet have in several forms: wrapped models, kinds of
optimizers, cascades."""
from typing import Dict, List

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, which checkpoints are of.

    Args:
        model (nn.Module): A model, or a wrapper around one.
    """
    wrapped = is_model_wrapper(model) or isinstance(model, BaseTTAModel)
    return unwrap(model.module) if wrapped else model


def stages_of(part: nn.Module) -> List[nn.Module]:
    """The stages of a cascade, or the one there is.

    Args:
        part (nn.Module): A part of a ``roi_head``.
    """
    return list(part) if isinstance(part, nn.ModuleList) else [part]


def optim_wrappers(runner) -> Dict[str, OptimWrapper]:
    """The optimizers of a run; where there is one, its name is ''.

    Args:
        runner (Runner): That has built them.
    """
    wrapper = getattr(runner, 'optim_wrapper', None)
    if isinstance(wrapper, OptimWrapperDict):  # an OptimWrapper as well
        return dict(wrapper.items())
    return {'': wrapper} if isinstance(wrapper, OptimWrapper) else {}


def param_schedulers(runner) -> Dict[str, List]:
    """The schedulers of each optimizer, by its name.

    Args:
        runner (Runner): That has built them.
    """
    schedulers = runner.param_schedulers or []
    return schedulers if isinstance(schedulers, dict) else {
        '': list(schedulers)}
