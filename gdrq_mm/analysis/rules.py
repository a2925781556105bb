"""Rules of a config, of which each must act on something."""
from typing import Dict, Iterable, List, Mapping, Sequence

from torch import nn

from ..config import QuantConfig
from ..config.quantization import SIDES
from ..plan import LayerPlan, make_plan

LAYER_SIDES = ('weight', 'activation')


def acting_rules(config: dict, acting: Mapping[str, Sequence[str]]
                 ) -> List[dict]:
    """The rules that still decide a layer, with the fields that still act.

    The others would be refused, see :func:`gdrq_mm.plan.make_plan`.

    Args:
        config (dict): A ``quantization`` that is allowed.
        acting (mapping): Names that rules are to decide -> what of
            these is quantized, of 'weight', 'activation' and 'products'.
    """
    parsed = QuantConfig.from_dict(config)
    kept = []
    for given, rule in zip(config.get('rules') or (), parsed.rules):
        decided = [name for name in acting if parsed.rule_of(name) is rule]
        acts = {side for name in decided for side in acting[name]}
        left = {key: value for key, value in given.items()
                if key not in SIDES or key in acts
                # What turns a side off acts by leaving it float.
                or (value and value.get('bits', 0) is None)}
        if decided and any(left.get(key) for key in ('skip', *SIDES)):
            kept.append(left)
    return kept


def quantized_sides(plans: Iterable[LayerPlan]) -> Dict[str, List[str]]:
    """What is quantized of all that rules decide, by its name."""
    sides: Dict[str, List[str]] = {}
    for plan in plans:
        if not plan.output:
            sides.setdefault(plan.module_name, []).extend(
                ['products'] * plan.quantized if plan.products else
                [side for side in LAYER_SIDES if getattr(plan, side)])
    return sides


def rules_of_layers(config: dict, model: nn.Module) -> List[dict]:
    """The rules of a config, without what they say of ReLUs alone and of
    products.

    Args:
        config (dict): A ``quantization`` of this model.
        model (nn.Module): A float model.
    """
    plans = make_plan(model, QuantConfig.from_dict(config))
    return acting_rules(config, quantized_sides(
        plan for plan in plans if not plan.products
        and not isinstance(plan.module, nn.ReLU)))
