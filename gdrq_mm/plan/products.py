"""Which modules multiply activations with activations: config -> plans."""
from typing import Dict, List

from torch import nn

from ..config import QuantConfig
from ..layers import QUANT_LAYERS, products_of
from ..layers.count_products import Products
from ..layers.product_operands import PRODUCT_QUANTIZERS
from .layer_plan import LayerPlan


def plan_products(modules: Dict[str, nn.Module], config: QuantConfig
                  ) -> List[LayerPlan]:
    """Decide for every module with products of activations.

    Args:
        modules (dict[str, nn.Module]): All of the model, by name.
        config (QuantConfig): What to quantize; nothing is planned where it
            does not say anything of products.

    Raises:
        ValueError: They are asked for, and no module is known to have any.
    """
    if not config.has_products:
        return []
    plans = []
    for name, module in modules.items():
        known = products_of(module)
        if known.number or known.reason:
            plans.append(_plan(name, module, known, config))
    if not plans and config.asks_for_products:
        raise ValueError(
            'products are to be quantized, and the source of no module of the '
            'model multiplies activations with activations: leave products '
            'out, or name the class of such modules with '
            'gdrq_mm.layers.register_products')
    return plans


def _plan(name: str, module: nn.Module, known: Products, config: QuantConfig
          ) -> LayerPlan:
    plan = LayerPlan(f'{name}.{PRODUCT_QUANTIZERS}'.lstrip('.'), module,
                     products=True)
    rule, scheme = config.rule_of(name), config.products_of(name)
    plan.reason = f'rule {rule.match!r}' if rule else 'products'
    # Of nn.MultiheadAttention, whose quantized form alone computes them.
    form = QUANT_LAYERS.get(type(module)) if isinstance(
        module, nn.MultiheadAttention) else None
    if rule and rule.skip:
        plan.reason += ': skip'
    elif scheme.bits is None:
        plan.reason += ': no bits asked for'
    elif known.reason:
        plan.reason = known.reason
    elif form is not None and form.why_not(module):
        plan.reason = form.why_not(module)
    else:
        plan.activation, plan.sites = scheme, 2 * known.number
    return plan
