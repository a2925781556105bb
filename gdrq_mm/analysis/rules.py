"""Rules of a config, of which each must act on something."""
from typing import Dict, Iterable, List

from ..config import QuantConfig

SIDES = ('weight', 'activation')


def acting_rules(config: dict, acting: Dict[str, Iterable[str]]
                 ) -> List[dict]:
    """The rules that still decide a layer, with the fields that still act.

    The others would be refused, see :func:`gdrq_mm.plan.make_plan`.

    Args:
        config (dict): A ``quantization`` that is allowed.
        acting (dict[str, iterable of str]): Names that rules are to decide
            -> what of these is quantized, of 'weight' and 'activation'.
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
