"""What the rules of a config must do to a model."""
from typing import List

from ..config import QuantConfig
from ..config.quantization import SIDES
from .layer_plan import LayerPlan, kind_of


def check_rules_act(plans: List[LayerPlan], config: QuantConfig) -> None:
    """Fields of a rule must act on a layer that it decides.

    Args:
        plans (list[LayerPlan]): Layers, and products of modules.
        config (QuantConfig): Each of its rules decides one.

    Raises:
        ValueError: Names the rule and what acts on nothing.
    """
    for rule in config.rules:
        decided = [plan for plan in plans
                   if config.rule_of(plan.module_name) is rule]
        if (rule.activation or {}).get('site') == 'relu' and not any(
                kind_of(plan.module) == 'relu' for plan in decided):
            raise ValueError(
                f"rule {rule.match!r}: site='relu' acts on ReLUs, and it "
                f'decides none ({decided[0].module_name} is a '
                f'{type(decided[0].module).__name__}): match the ReLU, or '
                'leave site out')
        for side in SIDES:
            fields = getattr(rule, side)
            turned_off = fields and fields.get('bits', '') is None
            if not fields or turned_off or any(
                    _acts(plan, side) for plan in decided):
                continue
            raise ValueError(
                f'rule {rule.match!r}: {side}={fields} acts on none of its '
                f'layers ({decided[0].module_name}: '
                f'{_why_not(decided[0], side)}): give it bits, or leave '
                f'{side} out')


def _acts(plan: LayerPlan, side: str) -> bool:
    if plan.products or side == 'products':
        return plan.products and side == 'products' and plan.quantized
    return getattr(plan, side) is not None


def _why_not(plan: LayerPlan, side: str) -> str:
    if kind_of(plan.module) == 'relu' and side == 'weight':
        return 'a ReLU has no weight'
    if side == 'products' and not plan.products:
        return 'it multiplies no activations'
    if plan.products and side != 'products':
        return 'only its products can be quantized'
    return f'its {side} has no bits' if plan.quantized else plan.reason
