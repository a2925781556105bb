"""config -> plan: what becomes of every layer, decided before any change."""
from typing import List

from torch import nn
from torch.nn.parameter import is_lazy

from ..config import QuantConfig, ResidualScheme
from ..layers import QUANT_LAYERS
from ..layers.output import OUTPUT_QUANTIZER
from ..layers.relu import count_call_sites
from ..quantizers import QUANTIZERS
from .layer_plan import LayerPlan, kind_of
from .outputs import find_outputs
from .products import plan_products
from .rules import check_rules_act


def make_plan(model: nn.Module, config: QuantConfig) -> List[LayerPlan]:
    """Decide for every layer of ``model`` whether and how to quantize it.

    Changes nothing. Layers are all modules that own weights of two or more
    dimensions, whatever they call them, and, with ``site='relu'``, the ReLUs;
    the outputs that ``residual`` names come after them, then the modules that
    multiply activations, where the config says anything of ``products``.

    Args:
        model (nn.Module): A float model.
        config (QuantConfig): What to quantize.

    Returns:
        list[LayerPlan]: Layers in the order of ``model.named_modules()``,
        then outputs of 8 bits and products.

    Raises:
        ValueError: A rule matches no layer or acts on none, two layers share
            one weight but get different schemes, a part is quantized already,
            a lazy module has no shape yet, a pattern of ``residual`` matches
            no module, or no module is known to have ``products``.
    """
    modules = dict(model.named_modules())
    plans = []
    for name, module in modules.items():
        _check_shaped(name, module)
        kind = kind_of(module)
        if kind == 'relu' and config.schemes(name)[1].site == 'relu':
            plans.append(_plan_relu(name, module, modules, config))
        elif kind == 'layer':
            plans.append(_plan_layer(name, module, config))
    _leave_held_elsewhere(model, plans)
    aliases = _name_aliases(model, plans)
    products = plan_products(modules, config)
    config.check_rules([plan.module_name for plan in plans + products],
                       aliases)
    check_rules_act(plans + products, config)
    _check_shared_weights(plans)
    return plans + _plan_outputs(model, config.residual) + products


def _check_shaped(name: str, module: nn.Module) -> None:
    if any(map(is_lazy, module._parameters.values())):
        raise ValueError(
            f'{name} is a {type(module).__name__} that has no shape yet: run '
            'the model once, so that it gets its weights, then quantize it')


def _plan_outputs(model: nn.Module, residual: ResidualScheme
                  ) -> List[LayerPlan]:
    return [LayerPlan(f'{name}.{OUTPUT_QUANTIZER}', module,
                      activation=residual.activation, sites=1,
                      reason='residual', output=True)
            for name, module in find_outputs(model, residual.outputs).items()]


def _name_aliases(model: nn.Module, plans: List[LayerPlan]) -> dict:
    """Other names of the planned modules; their reasons name them as well.

    Returns:
        dict[str, str]: Other name -> the name in the plan.
    """
    planned = {id(plan.module): plan for plan in plans}
    aliases = {}
    for name, module in model.named_modules(remove_duplicate=False):
        plan = planned.get(id(module))
        if plan is not None and name != plan.name:
            aliases[name] = plan.name
            plan.reason += f'; is {name} as well'
    return aliases


def _plan_layer(name, module, config) -> LayerPlan:
    plan = LayerPlan(name, module)
    rule = config.rule_of(name)
    because = f'rule {rule.match!r}' if rule else 'default'
    cls = type(module)
    if cls in QUANT_LAYERS.values():
        raise ValueError(f'{name} is quantized already, by an earlier '
                         'quantize_ of a part of this model; quantize the '
                         'whole model once')
    if rule and rule.skip:
        plan.reason = f'{because}: skip'
    elif cls not in QUANT_LAYERS:
        plain = [base.__name__ for base in QUANT_LAYERS
                 if issubclass(cls, base)]
        plan.reason = (
            f'{cls.__name__} is a {plain[0]} that may compute something else; '
            'see register_quant_layer' if plain else
            f'no quantized form of {cls.__name__}')
    elif _why_not(module):
        plan.reason = _why_not(module)
    else:
        weight, activation = config.schemes(name)
        if weight.bits is not None:
            plan.weight = weight
        if activation.bits is not None:
            plan.activation = activation
            plan.sites = len(QUANT_LAYERS[cls].input_names)
        plan.reason = because if plan.quantized else \
            f'{because}: no bits asked for'
    return plan


def _why_not(module: nn.Module) -> str:
    return QUANT_LAYERS[type(module)].why_not(module)


def _plan_relu(name, module, modules, config) -> LayerPlan:
    plan = LayerPlan(name, module)
    rule = config.rule_of(name)
    plan.reason = f'rule {rule.match!r}' if rule else 'default'
    activation = config.schemes(name)[1]
    if activation.bits is None:
        plan.reason += (': skip' if rule and rule.skip else
                        ': no bits asked for')
        return plan
    parent, _, attribute = name.rpartition('.')
    plan.activation = activation
    plan.sites = count_call_sites(modules[parent], attribute)
    return plan


def _leave_held_elsewhere(model: nn.Module, plans: List[LayerPlan]) -> None:
    """A layer whose weight is registered elsewhere, too, stays float: what
    reads it there (a table that is looked up, other code) gets float values.
    """
    planned = {(plan.module, plan.parameter_name) for plan in plans}
    others = {id(parameter): f'{name}.{key}'.lstrip('.')
              for name, module in model.named_modules()
              for key, parameter in module._parameters.items()
              if (module, key) not in planned}
    for plan in plans:
        other = others.get(id(plan.parameter))
        if other and plan.parameter is not None and plan.quantized:
            plan.weight, plan.activation, plan.sites = None, None, 0
            plan.reason += f'; its weight is {other} as well, which stays ' \
                'float'


def _check_shared_weights(plans: List[LayerPlan]) -> None:
    owners = {}
    for plan in plans:
        weight = plan.module._parameters.get(plan.parameter_name)
        if weight is None:
            continue
        owner = owners.setdefault(id(weight), plan)
        floats = [each for each in (owner, plan)
                  if type(each.module) not in QUANT_LAYERS]
        if owner.weight != plan.weight and floats:
            raise ValueError(
                f'{owner.name} and {plan.name} share one weight, and '
                f'{floats[0].name} has to stay float ({floats[0].reason}): '
                'leave both float with '
                f'dict(match={owner.name!r}, skip=True) and '
                f'dict(match={plan.name!r}, skip=True) in the rules')
        if owner.weight != plan.weight:
            raise ValueError(
                f'{owner.name} and {plan.name} share one weight, but are '
                f'asked for {owner.weight} and {plan.weight}; give both the '
                'same rule')
        if owner is plan:
            continue
        if plan.weight and _learns(plan):
            raise ValueError(
                f'{owner.name} and {plan.name} share one weight, for which '
                f'{plan.weight.type} would learn two scales, of which a file '
                'holds one: give both a type that learns no scale of '
                'weights, or leave both float with '
                f'dict(match={owner.name!r}, skip=True) and '
                f'dict(match={plan.name!r}, skip=True) in the rules')
        plan.reason += f'; shares its weight with {owner.name}'
        owner.reason += f'; shares its weight with {plan.name}'


def _learns(plan: LayerPlan) -> bool:
    """Whether the quantizer of a weight has parameters of its own."""
    return bool(QUANTIZERS[plan.weight.type].weight.build(
        plan.weight, num_filters=plan.parameter.shape[0]
    ).learned_parameters())
