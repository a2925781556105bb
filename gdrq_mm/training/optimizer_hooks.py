"""Keep the hooks of optimizers, which torch.compile takes off in torch 2.1.

``torch._dynamo`` of these versions replaces the ``step`` of every optimizer
class by the one without hooks (to trace it), for the whole process and as soon
as anything is compiled. Weights would then never be projected, and no
threshold would ever be set.
"""
from typing import Iterator, Type

from torch.optim import Optimizer

# All functions that profile_hook_step gives share their code.
_WITH_HOOKS = Optimizer.profile_hook_step(lambda optimizer: None).__code__


def keep_optimizer_hooks() -> None:
    """Put the hooks back where a ``step`` is said to have them and has not."""
    for kind in _subclasses(Optimizer):
        step = vars(kind).get('step')
        if getattr(step, 'hooked', False) and not _has_hooks(step):
            kind.step = Optimizer.profile_hook_step(step)
            kind.step.hooked = True


def _subclasses(kind: Type[Optimizer]) -> Iterator[Type[Optimizer]]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)


def _has_hooks(step) -> bool:
    while step is not None:
        if getattr(step, '__code__', None) is _WITH_HOOKS:
            return True
        step = getattr(step, '__wrapped__', None)
    return False
