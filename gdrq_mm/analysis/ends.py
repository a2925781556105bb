"""First and last layers of a model, which many policies keep at 8 bits.

No name or place gives them away: detectors have several
predictors, and the order of modules is not that of their calls. So they are
read off the graph that autograd records.
"""
import warnings
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List, NamedTuple

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..errors import and_more
from ..modes import eval_mode
from ..plan import LayerPlan

# What autograd calls the pooling of regions (mmcv): its second operand, the
# regions, chooses without a gradient, though the graph shows it.
POOLED = ('RoIAlignFunctionBackward', 'RoIAlignRotatedFunctionBackward',
          'RoIPoolFunctionBackward', 'DeformRoIPoolFunctionBackward')


class Ends(NamedTuple):
    """Names of layers, each list in the order of ``model.named_modules()``.

    Args:
        first (list[str]): They read the output of no other layer.
        last (list[str]): No other layer reads their output.
        uncalled (list[str]): The forward does not call them, as that of
            auxiliary heads in a prediction.
    """
    first: List[str]
    last: List[str]
    uncalled: List[str]


def first_and_last(model: nn.Module, plans: List[LayerPlan],
                   forward: Callable) -> Ends:
    """Run ``forward`` once and see which layers read which.

    A layer reads another one where a gradient could flow from its input to
    that one's output without passing through a third: proposals, which
    detectors detach, do not make the layers of a ROI head read those of the
    RPN.

    Args:
        model (nn.Module): Float or quantized; in eval mode meanwhile.
        plans (list[LayerPlan]): The layers to look at.
        forward (callable): Runs the model on a batch, without
            ``torch.no_grad``.

    Returns:
        Ends: First, last and uncalled layers; none of those that the model
        calls without gradients, which a warning names.

    Raises:
        ValueError: It calls all layers without gradients.
    """
    layers = [plan for plan in plans
              if plan.parameter is not None]
    reads: Dict[str, set] = {}
    written = {}  # node of autograd, kept alive -> the layer that made it

    def watch(name):

        def hook(module, args, kwargs, output):
            sources = reads.setdefault(name, set())
            for value in (*args, *kwargs.values()):
                sources.update(_sources(value, written))
            for value in tree_flatten(output)[0]:
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    written[value.grad_fn] = name

        return hook

    handles = [plan.module.register_forward_hook(
        watch(plan.name), with_kwargs=True) for plan in layers]
    frozen = [parameter for plan in layers
              for parameter in plan.module.parameters(recurse=False)
              if not parameter.requires_grad]
    try:
        with torch.enable_grad(), eval_mode(model), _no_checkpoints():
            for parameter in frozen:  # they would not show in the graph
                parameter.requires_grad_(True)
            forward()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for handle in handles:
            handle.remove()
    hidden = _check_seen(list(reads), set(written.values()))
    read = {source for name, sources in reads.items()
            for source in sources if source != name}
    names = [plan.name for plan in layers]
    seen = [name for name in names if name in reads and name not in hidden]
    return Ends(first=[name for name in seen if not reads[name] - {name}],
                last=[name for name in seen if name not in read],
                uncalled=[name for name in names if name not in reads])


class _Straight:
    """Stands in for the function behind reentrant checkpointing, which would
    run its part without a graph."""

    @staticmethod
    def apply(function, preserve_rng_state, *args):
        return function(*args)


@contextmanager
def _no_checkpoints():
    # Not ``checkpoint``, which models may have imported by its name.
    module = torch.utils.checkpoint
    original, module.CheckpointFunction = module.CheckpointFunction, _Straight
    try:
        yield
    finally:
        module.CheckpointFunction = original


def _check_seen(called: List[str], seen: set) -> List[str]:
    """The called layers that the graph does not show; told by name."""
    hidden = [name for name in called if name not in seen]
    if not hidden:
        return []
    what = (f'the model calls {and_more(hidden)} without '
            'gradients (torch.no_grad), so that what reads them is not known')
    if len(hidden) == len(called):
        raise ValueError(f'{what}: let the forward record gradients')
    warnings.warn(f'{what}: give their bits by rules of your own')
    return hidden


def _sources(value, written: dict) -> Iterator[str]:
    """Layers whose output a tensor was made of, with no layer between."""
    if not isinstance(value, Tensor) or value.grad_fn is None:
        return
    pending, seen = [value.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in written:
            yield written[node]
        else:
            end = 1 if node.name() in POOLED else None
            pending.extend(
                following for following, _ in node.next_functions[:end])
