"""plan -> converted model."""
from typing import List, Optional, Tuple, Union

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
from .modes import default_at_least_float32
from .plan import LayerPlan, QuantReport, make_plan
from .quantizers import QUANTIZERS
from .quantizers.start import remember_start
from .training import QuantizationState, get_state
from .training.frozen import learned_in_freezing_backbones
from .training.sequential import QuantSequential

_Built = Tuple[Optional[nn.Module], List[Optional[nn.Module]]]
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
        TypeError: ``config`` is none of the two.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> report = quantize_(model, dict(weight=dict(bits=4),
        ...                                activation=dict(bits=4)))
        >>> report.layers[0].name, report.layers[0].weight.bits
        ('0', 4)
    """
    config = QuantConfig.from_dict(config)
    _check_unwrapped(model)
    if any(each.is_meta for each in model.parameters()):
        raise ValueError('quantize_ got a model without values (on the meta '
                         'device): give it some first, by to_empty() and '
                         'load_state_dict')
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
        # Thresholds are, whatever the weights.
        with default_at_least_float32():
            # All before anything is changed: one may be refused.
            built = [_build_quantizers(plan) for plan in quantized]
        device = next((each.device for each in model.parameters()),
                      torch.device('cpu'))
        for plan, quantizers in zip(quantized, built):
            for quantizer in (quantizers[0], *quantizers[1]):
                if quantizer is not None:
                    quantizer.to(device)
            _convert_layer(plan, state, modules, *quantizers)
        state.to(device).train(model.training)
        refuse_switches(model)
        refuse_nested_tensors(model, state.layers.values())
        refuse_fused_layers(model)
        watch_layers(model, state)
        state.learned = learned_in_freezing_backbones(model, state)
        model.add_module(NAME, state)
        if type(model) is nn.Sequential:
            model.__class__ = QuantSequential
        add_load_gate(model, state)
    return QuantReport(plans)


def _check_unwrapped(model: nn.Module) -> None:
    """Checkpoints are of the model inside, without the names of wrappers;
    what is no model would hand out the state as one of its parts."""
    if type(model) in (nn.ModuleList, nn.ModuleDict):
        raise ValueError(
            f'quantize_ got a {type(model).__name__}, which holds layers and '
            'computes nothing: convert the model that has it, and leave all '
            'else float with rules, dict(match=..., skip=True)')
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


def _build_quantizers(plan: LayerPlan) -> _Built:
    """Those of the weight and of activations, None for what stays float."""
    weight, activations = None, []
    if plan.weight:
        weight = QUANTIZERS[plan.weight.type].weight.build(
            plan.weight, num_filters=plan.parameter.shape[0])
        remember_start(weight)
    has_sites = plan.child or isinstance(plan.module, nn.ReLU)
    number = plan.sites if has_sites else len(
        QUANT_LAYERS[type(plan.module)].input_names)
    for _ in range(number):
        activations.append(None)
        if plan.activation:
            activations[-1] = QUANTIZERS[plan.activation.type].activation \
                .build(plan.activation, **dict(
                    headroom=OUTPUT_HEADROOM) if plan.output else {})
            remember_start(activations[-1])
    return weight, activations


def _convert_layer(plan: LayerPlan, state: QuantizationState, modules: dict,
                   weight: Optional[nn.Module],
                   activations: List[Optional[nn.Module]]) -> None:
    layer = plan.module
    if plan.output:
        layer = OutputQuantizer(state, *activations)
        attach_output(plan.module, layer)
        state.add(plan.name, layer.train(plan.module.training))
        return
    if plan.products:
        _convert_products(plan, state, activations)
        return
    layer.__class__ = QUANT_LAYERS[type(layer)]
    if isinstance(layer, nn.ReLU):
        parent = modules[plan.name.rpartition('.')[0]]
        layer.start_quantizing(state, activations, parent)
    else:
        layer.start_quantizing(state, weight, *activations)
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
