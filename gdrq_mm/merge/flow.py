"""Which normalization follows which layer, seen in a real forward."""
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional, Set, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ..layers import MERGED_FORMS, OutputQuantizer, QuantLayer, QuantReLU
from ..layers.relu import is_on_grid


@dataclass
class LayerFlow:
    """What the calls of one quantized layer showed.

    Args:
        calls (int): How often it was called.
        quantizers (list[nn.Module]): Those that quantized its input.
        norm (nn.Module, optional): The batch normalization that reads its
            output, and nothing else does.
        reason (str): Why there is none.
    """
    calls: int = 0
    quantizers: List[nn.Module] = field(default_factory=list)
    norm: Optional[nn.Module] = None
    reason: str = ''


@dataclass
class _Output:
    """One output of a quantized layer, and what read it."""
    layer: nn.Module
    tensor: Tensor  # kept alive: its id is its name
    version: int
    norms: List[nn.Module] = field(default_factory=list)
    others: int = 0


class _Watch(TorchDispatchMode):
    """Note every operator that reads the output of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: Dict[int, _Output] = {}
        self.grids: Dict[int, tuple] = {}  # outputs of QuantReLU
        self.calls: Dict[nn.Module, List[nn.Module]] = {}
        self.forwards: Dict[nn.Module, int] = {}  # also without __call__
        self.strangers = set()  # norms that read something else
        self.rounded: Set[nn.Module] = set()  # output quantizers
        self.inside = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.inside:
            self.read(tree_flatten((args, kwargs))[0])
        return func(*args, **kwargs)

    def read(self, values) -> None:
        for value in values:
            if isinstance(value, Tensor) and id(value) in self.outputs:
                self.outputs[id(value)].others += 1

    # -- hooks ---------------------------------------------------------------

    def count_forwards(self, layer) -> Callable:
        self.forwards[layer] = 0
        forward = layer.forward

        def counted(*args, **kwargs):
            self.forwards[layer] += 1
            return forward(*args, **kwargs)

        return counted

    def before_layer(self, layer, args) -> None:
        x = args[0]
        self.read([x])  # a threshold that is not set reads nothing
        self.calls.setdefault(layer, []).append(
            self.grids[id(x)][1] if is_on_grid(x) and id(x) in self.grids
            else layer.input_quantizer)

    def before_attention(self, layer, args, kwargs) -> None:
        self.read(tree_flatten((args, kwargs))[0])
        self.calls.setdefault(layer, []).append(layer.input_quantizer)

    def after_layer(self, layer, args, output) -> None:
        self.outputs[id(output)] = _Output(layer, output, output._version)

    def after_relu(self, relu, args, output) -> None:
        self.grids[id(output)] = (output, relu.last_quantizer)

    def after_output(self, quantizer, args, output) -> None:
        self.rounded.add(quantizer)

    def before_norm(self, norm, args, kwargs) -> None:
        self.inside += 1
        x = args[0] if args else kwargs['input']
        output = self.outputs.get(id(x))
        if output is None or output.version != x._version:
            self.strangers.add(norm)
        else:
            output.norms.append(norm)

    def after_norm(self, norm, args, output) -> None:
        self.inside -= 1


@torch.no_grad()
def trace_flow(model: nn.Module, forward: Callable
               ) -> Tuple[Dict[nn.Module, LayerFlow], Set[nn.Module]]:
    """Run ``forward`` once and find the normalization of every layer.

    A pair of layer and normalization is one where the very tensor that the
    layer returned is read by the normalization and by nothing else, in every
    call of either.

    Args:
        model (nn.Module): A quantized model in eval mode.
        forward (callable): Runs it and returns what it gives.

    Returns:
        tuple: The :class:`LayerFlow` of every quantized layer with a weight;
        the output quantizers that were called.
    """
    watch, handles = _Watch(), []
    flows = {}
    for module in model.modules():
        if isinstance(module, QuantLayer):
            flows[module] = LayerFlow()
            if len(module.input_names) > 1:  # nothing is merged into it
                handles.append(module.register_forward_pre_hook(
                    watch.before_attention, with_kwargs=True))
                continue
            handles += [module.register_forward_pre_hook(watch.before_layer),
                        # Before a quantizer of its output.
                        module.register_forward_hook(watch.after_layer,
                                                     prepend=True)]
        elif isinstance(module, QuantReLU):
            handles.append(module.register_forward_hook(watch.after_relu))
        elif isinstance(module, OutputQuantizer):
            handles.append(module.register_forward_hook(watch.after_output))
        elif _is_batch_norm(module):
            handles += [module.register_forward_pre_hook(watch.before_norm,
                                                         with_kwargs=True),
                        module.register_forward_hook(watch.after_norm)]
    own = {layer: vars(layer).get('forward') for layer in flows}
    for layer in flows:
        layer.forward = watch.count_forwards(layer)
    try:
        with watch:
            result = forward()
    finally:
        for handle in handles:
            handle.remove()
        for layer, before in own.items():
            del layer.forward
            if before is not None:
                layer.forward = before
    watch.read(tree_flatten(result)[0])
    for layer, quantizers in watch.calls.items():
        flows[layer].calls = len(quantizers)
        flows[layer].quantizers = list(dict.fromkeys(quantizers))
    _pair(flows, watch)
    return flows, watch.rounded


def _is_batch_norm(module: nn.Module) -> bool:
    """Whether it computes no more than batch normalization; that of a
    subclass may have an activation inside."""
    return isinstance(module, _BatchNorm) and 'forward' not in vars(
        module) and type(module).forward in (
            _BatchNorm.forward, nn.SyncBatchNorm.forward)


def _overflows(layer: QuantLayer, norm: nn.Module) -> bool:
    """Whether a negative factor meets a code without an opposite one."""
    if norm.weight is None or layer.weight_quantizer.lowest_code != -128:
        return False
    codes, _ = layer.weight_quantizer.codes(layer.weight)
    return bool(((codes.flatten(1).amin(1) < -127) & (norm.weight < 0)).any())


def _pair(flows: Dict[nn.Module, LayerFlow], watch: _Watch) -> None:
    """Fill in ``norm`` or ``reason`` of every layer."""
    outputs: Dict[nn.Module, List[_Output]] = {}
    for output in watch.outputs.values():
        outputs.setdefault(output.layer, []).append(output)
    for layer, flow in flows.items():
        norms = {norm for each in outputs.get(layer, ())
                 for norm in each.norms}
        every = all(each.norms for each in outputs.get(layer, ()))
        if not flow.calls:
            flow.reason = 'not called'
        elif layer.past_reads:
            flow.reason = 'other code reads its weight'
        elif watch.forwards[layer] > flow.calls:
            flow.reason = 'other code calls its forward past its hooks'
        elif layer.weight_quantizer is None or not set(
                flow.quantizers) - {None}:
            flow.reason = 'it stays float'
        elif MERGED_FORMS[type(layer)].integer is None:
            flow.reason = 'no integer kernel takes it'
        elif not norms:
            flow.reason = 'no batch normalization reads its output'
        elif len(norms) > 1 or not every:
            flow.reason = (f'its {flow.calls} calls are not all followed by '
                           'the same normalization')
        elif any(each.others or len(each.norms) > 1
                 for each in outputs[layer]):
            flow.reason = 'more than a normalization reads its output'
        elif any(each.tensor.dim() != layer.weight.dim()
                 for each in outputs[layer]):
            # Of a linear layer on (batch, tokens, features) it is tokens.
            flow.reason = ('its normalization normalizes another dimension '
                           'than that of its filters')
        else:
            flow.norm, = norms
            if flow.norm in watch.strangers:
                flow.reason = ('its normalization normalizes other tensors '
                               'as well')
            elif flow.norm.training or flow.norm.running_mean is None:
                flow.reason = ('its normalization uses the statistics of '
                               'the batch')
            elif _overflows(layer, flow.norm):
                flow.reason = ('its normalization would turn codes of -128 '
                               'into 128, which int8 does not hold')
    # A normalization goes away for all of its layers or for none.
    kept = {norm for each in watch.outputs.values() for norm in each.norms
            if flows[each.layer].reason}
    for flow in flows.values():
        if flow.norm is None:
            continue
        if flow.norm in kept and not flow.reason:
            flow.reason = 'another layer shares its normalization'
        if flow.reason:
            flow.norm = None
