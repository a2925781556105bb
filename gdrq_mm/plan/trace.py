"""What one forward shows of planned layers: calls, signs, MACs."""
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from ..layers import QuantLayer
from ..modes import eval_mode
from .layer_plan import LayerPlan


@dataclass
class LayerTrace:
    """What one forward of the model showed of a layer.

    Args:
        calls (int): How often it was called.
        macs (int): Multiply-accumulates of all calls.
        signed (bool): Whether an input had negative values.
        same_input (list[str]): Other layers that read the same tensor.
    """
    calls: int = 0
    macs: int = 0
    signed: bool = False
    same_input: List[str] = field(default_factory=list)


def first_tensor(values) -> Optional[torch.Tensor]:
    """The first tensor in arguments or results; users' own layers may have
    them in tuples."""
    return next((value for value in tree_flatten(values)[0]
                 if isinstance(value, torch.Tensor)), None)


def _projection_macs(plan: LayerPlan, args: tuple, kwargs: dict) -> int:
    """Multiply-accumulates of attention's query, key and value."""
    inputs = [kwargs[name] if name in kwargs else args[place]
              for place, name in enumerate(('query', 'key', 'value'))]
    width = plan.module.embed_dim
    return sum(x.numel() * width for x in inputs)


@torch.no_grad()
def trace_layers(model: nn.Module, plans: List[LayerPlan],
                 forward: Callable) -> Dict[str, LayerTrace]:
    """Run ``forward`` once and look at the inputs of every planned layer.

    Args:
        model (nn.Module): Float or quantized; in eval mode meanwhile.
        plans (list[LayerPlan]): The layers to look at.
        forward (callable): Runs the model on a batch.

    Raises:
        ValueError: A module whose output is to be quantized returns something
            else than one tensor.
    """
    traces = {plan.name: LayerTrace() for plan in plans}
    readers = {}  # id of a tensor -> (the tensor, kept alive; its readers)

    def watch(plan):

        def hook(module, args, kwargs, output):
            if plan.output and not isinstance(output, torch.Tensor):
                raise ValueError(
                    f'{plan.name} cannot quantize what a '
                    f'{type(module).__name__} returns, a '
                    f'{type(output).__name__}; residual.outputs takes modules '
                    'that return one tensor')
            trace = traces[plan.name]
            trace.calls += 1
            if plan.products:  # operands are no inputs: signs do not show
                return
            x = output if plan.output else first_tensor((args, kwargs))
            if x is None:
                return
            trace.signed |= bool(x.numel() and x.amin() < 0)
            if plan.output:
                return
            weight = plan.parameter
            if isinstance(module, nn.MultiheadAttention):
                trace.macs += _projection_macs(plan, args, kwargs)
                out = traces.get(f'{plan.name}.out_proj')
                if out is not None and not isinstance(module, QuantLayer):
                    # torch hands its weight to a function; signed: a mean of
                    # values.
                    out.calls, out.signed = out.calls + 1, True
                    out.macs += x.numel() * module.embed_dim
            elif weight is not None:
                each = x if getattr(module, 'transposed', False) \
                    else first_tensor(output)
                if each is not None:
                    trace.macs += each.numel() * weight[0].numel()
            else:  # recurrent layers: all of them a token
                trace.macs += x.shape[:-1].numel() * sum(
                    matrix.numel() for matrix in plan.matrices)
            if output is not x:  # else nothing reads what was there before
                version = 0 if x.is_inference() else x._version
                readers.setdefault((id(x), version), (x, []))[1].append(
                    plan.name)

        return hook

    handles = [plan.module.register_forward_hook(
        watch(plan), with_kwargs=True) for plan in plans]
    try:
        with eval_mode(model):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    for _, names in readers.values():
        for name in names:
            others = traces[name].same_input
            others.extend(other for other in names
                          if other != name and other not in others)
    return traces
