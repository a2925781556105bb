"""plan -> converted model."""
from typing import List, Union

import torch
from torch import nn

from .checkpoint import NAME, add_load_gate
from .checkpoint.keys import PACKED
from .config import QuantConfig
from .layers import (
    QUANT_LAYERS,
    OutputQuantizer,
    ProductQuantizers,
    added_names,
    attach_output,
    attach_products,
    refuse_fused_layers,
    refuse_nested_tensors,
    refuse_switches,
    watch_layers,
)
from .layers.output import HEADROOM as OUTPUT_HEADROOM
from .modes import at_least_float32
from .plan import LayerPlan, QuantReport, make_plan
from .quantizers import QUANTIZERS
from .training import QuantizationState, get_state

_WRAPPERS = dict(  # class -> where it has the model
    DistributedDataParallel='module', DataParallel='module',
    FullyShardedDataParallel='module', OptimizedModule='_orig_mod')


def quantize_(model: nn.Module, config: Union[dict, QuantConfig]
              ) -> QuantReport:
    """Convert ``model`` in place to a quantization-aware one.

    Every Parameter object and every state-dict key stays; quantizers add
    their own. Float checkpoints load as before. Train as always: after each
    step of an optimizer that holds the weights, they are projected and the
    activation thresholds move. Quantizing again with the same config changes
    nothing.

    Args:
        model (nn.Module): The model.
        config (dict or QuantConfig): See :class:`QuantConfig`.

    Returns:
        QuantReport: What was quantized and what was not, and why.

    Raises:
        ValueError: A value that is not allowed, a rule that matches no layer,
            a weight with NaN or infinite values, a wrapper in place of a
            model, a part that has a name which quantization needs, or a
            model that is already quantized with another config.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> report = quantize_(model, dict(weight=dict(bits=4),
        ...                                activation=dict(bits=4)))
        >>> report.layers[0].name, report.layers[0].weight.bits
        ('0', 4)
    """
    config = QuantConfig.from_dict(config)
    _check_unwrapped(model)
    state = get_state(model)
    if state is not None:
        if state.config != config:
            raise ValueError(
                'the model is already quantized with another config:\n'
                f'  now:   {state.config.to_dict()}\n'
                f'  asked: {config.to_dict()}\nBuild the model anew, or keep '
                'one of the two configs (a QuantizedModel needs none in '
                'GDRQHook).')
        return QuantReport(state.plans)
    plans = make_plan(model, config)
    check_weights(plans)
    quantized = [plan for plan in plans if plan.quantized]
    if quantized:
        _check_names(model, quantized)
        state = QuantizationState(config, plans, model.parameters())
        modules = dict(model.named_modules())
        with at_least_float32():  # thresholds are, whatever the weights
            for plan in quantized:
                _convert_layer(plan, state, modules)
        state.to(next(model.parameters()).device).train(model.training)
        refuse_switches(model)
        refuse_nested_tensors(model, state.layers.values())
        refuse_fused_layers(model)
        watch_layers(model, state)
        model.add_module(NAME, state)
        add_load_gate(model, state)
    return QuantReport(plans)


def _check_unwrapped(model: nn.Module) -> None:
    """Checkpoints are of the model inside, without the names of wrappers."""
    for cls in type(model).__mro__:
        inside = _WRAPPERS.get(cls.__name__)
        if inside:
            raise ValueError(
                f'quantize_ got a {type(model).__name__} around a model: '
                f'convert the model itself (model.{inside}) before it is '
                'wrapped, so that its checkpoints load without the wrapper')


def _check_names(model: nn.Module, plans: List[LayerPlan]) -> None:
    """What the user's code has under a name of ours would be replaced."""
    if hasattr(model, NAME):
        raise ValueError(
            f'the model has a {NAME} of its own, a '
            f'{type(getattr(model, NAME)).__name__}, and quantization needs '
            'that name for its state: rename it. Nothing was changed')
    for plan in plans:
        name = plan.module_name or 'the model'
        if plan.child:
            names = {plan.child}
            remedy = 'name another module in residual.outputs' \
                if plan.output else 'leave its products float with ' \
                f'dict(match={plan.module_name!r}, products=dict(bits=None))' \
                ' in the rules'
        else:
            names = {PACKED, *added_names(QUANT_LAYERS[type(plan.module)])}
            remedy = ('leave this layer float with '
                      f'dict(match={plan.name!r}, skip=True) in the rules')
        taken = sorted(each for each in names if hasattr(plan.module, each))
        if taken:
            raise ValueError(
                f'{name}, a {type(plan.module).__name__}, has '
                f'{", ".join(taken)} of its own, and quantization needs that '
                f'name there: rename it, or {remedy}. Nothing was changed')


def _convert_layer(plan: LayerPlan, state: QuantizationState,
                   modules: dict) -> None:
    layer = plan.module
    device = next(modules[''].parameters()).device

    def activation_quantizer(**options):
        scheme = plan.activation
        return QUANTIZERS[scheme.type].activation.build(
            scheme, **options).to(device)

    if plan.output:
        layer = OutputQuantizer(state, activation_quantizer(
            headroom=OUTPUT_HEADROOM))
        attach_output(plan.module, layer)
        state.add(plan.name, layer.train(plan.module.training))
        return
    if plan.products:
        _convert_products(plan, state, [
            activation_quantizer() for _ in range(plan.sites)])
        return
    layer.__class__ = QUANT_LAYERS[type(layer)]
    if isinstance(layer, nn.ReLU):
        parent = modules[plan.name.rpartition('.')[0]]
        layer.start_quantizing(
            state, [activation_quantizer() for _ in range(plan.sites)],
            parent)
    else:
        weight_quantizer = plan.weight and QUANTIZERS[
            plan.weight.type].weight.build(
                plan.weight, num_filters=plan.parameter.shape[0]).to(device)
        layer.start_quantizing(
            state, weight_quantizer,
            *(activation_quantizer() if plan.activation else None
              for _ in layer.input_names))
    layer.train(layer.training)  # its quantizers as well
    state.add(plan.name, layer)


def _convert_products(plan: LayerPlan, state: QuantizationState,
                      quantizers: List[nn.Module]) -> None:
    module = plan.module
    if type(module) is nn.MultiheadAttention:  # else torch computes them
        module.__class__ = QUANT_LAYERS[nn.MultiheadAttention]
        module.start_quantizing(state, None, *[None] * 3)
    operands = ProductQuantizers(state, quantizers)
    attach_products(module, operands)
    state.add(plan.name, operands.train(module.training))


def check_weights(plans: List[LayerPlan]) -> None:
    """Raise on weights that cannot be quantized.

    Raises:
        ValueError: NaN or infinite values, with the name of the layer.
    """
    for plan in plans:
        if plan.weight is None:
            continue
        weight = plan.parameter
        bad = int((~torch.isfinite(weight)).sum())
        if bad:
            raise ValueError(
                f'{plan.name}.{plan.parameter_name} has {bad} NaN or '
                f'infinite values of {weight.numel()}; the checkpoint or the '
                'training before it is broken, start from another one')
