"""Bits for every layer under a budget: an integer program."""
import glob
import itertools
from dataclasses import dataclass
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..config import QuantConfig, Rule
from ..plan import LayerPlan
from .rules import LAYER_SIDES, acting_rules, quantized_sides

FLOAT = 32


class Bits(NamedTuple):
    """Bits of a layer's weights and of its inputs."""
    weight: int
    activation: int


@dataclass
class Layer:
    """What a choice of bits costs in one layer, or in layers that share a
    weight.

    Args:
        names (list[str]): The layers.
        weights (int): Number of weights.
        packed (dict[int, int]): Bytes in a published file by bits.
        macs (int): Multiply-accumulates of all calls.
        weight_noise (dict[int, float]): Noise of the outputs by bits of the
            weights alone.
        activation_noise (dict[int, float]): The same of the inputs.
        activation_bits (int): What the inputs keep where they are not chosen.
        fixed (bool): It stays float.
        kept (Bits, optional): What it keeps, where nothing is to choose.
    """
    names: List[str]
    weights: int
    packed: Dict[int, int]
    macs: int
    weight_noise: Dict[int, float]
    activation_noise: Dict[int, float]
    activation_bits: int
    fixed: bool = False
    kept: Optional[Bits] = None

    def noise(self, bits: Bits) -> float:
        """Noise of weights and inputs, which are taken to add up."""
        return sum(_never_falling(noises)[number] for noises, number in (
            (self.weight_noise, bits.weight),
            (self.activation_noise, bits.activation)))

    def cost(self, kind: str, bits: Optional[Bits]) -> float:
        """Bytes ('size') or bit operations ('bops'); None is float."""
        if kind == 'size':
            return 4. * self.weights if bits is None else \
                float(self.packed[bits.weight])
        product = FLOAT * FLOAT if bits is None else \
            bits.weight * bits.activation
        return float(self.macs * product)


def _never_falling(noises: Dict[int, float]) -> Dict[int, float]:
    """More bits are never worse: where they were measured to be, that is
    noise of the measurement. What broke the outputs stays infinite."""
    order = sorted(noises)
    found = np.array([noises[bits] for bits in order], dtype=float)
    found[~np.isfinite(found)] = np.inf
    least = np.minimum.accumulate(found)
    return dict(zip(order, np.where(np.isinf(found), found, least).tolist()))


def relative_cost(layers: Sequence[Layer], kind: str,
                  choice: Dict[str, Bits]) -> float:
    """Cost of a policy, relative to the float model.

    Args:
        layers (list[Layer]): All layers.
        kind (str): 'size' or 'bops'.
        choice (dict[str, Bits]): By the first name of a layer; what is not
            in it is float.
    """
    costs = [layer.cost(kind, choice.get(layer.names[0]))
             for layer in layers]
    return sum(costs) / sum(layer.cost(kind, None) for layer in layers)


def predicted_noise(layers: Sequence[Layer], choice: Dict[str, Bits]
                    ) -> float:
    """The sum over layers."""
    return sum(layer.noise(choice[layer.names[0]]) for layer in layers
               if layer.names[0] in choice)


def propose(layers: Sequence[Layer], budgets: Dict[str, float],
            weight_bits: Iterable[int],
            activation_bits: Optional[Iterable[int]] = None
            ) -> Dict[str, Bits]:
    """The bits of least noise within a budget.

    Args:
        layers (list[Layer]): All layers of the model.
        budgets (dict[str, float]): 'size' or 'bops' -> the most it may be,
            relative to the float model.
        weight_bits (iterable of int): What weights may have.
        activation_bits (iterable of int, optional): What inputs may have.
            Defaults to None: each layer keeps its own.

    Returns:
        dict[str, Bits]: By the first name of a layer, in their order.

    Raises:
        ValueError: A budget is unknown, or cannot be met.
        ImportError: scipy is missing.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError as error:
        raise ImportError('scipy is missing, which solves the integer '
                          'program: pip install "gdrq_mm[analysis]"'
                          ) from error
    free = [layer for layer in layers if not layer.fixed]
    weight_bits = sorted(weight_bits)
    if activation_bits is not None:
        activation_bits = sorted(activation_bits)
    if not free or not weight_bits or activation_bits == []:
        raise ValueError('no layer is quantized, or no bits are allowed: '
                         'there is nothing to choose')
    options = [_options(layer, weight_bits, activation_bits)
               for layer in free]
    noise = np.array([0. if layer.kept else layer.noise(bits)
                      for layer, row in zip(free, options) for bits in row])
    owner = np.repeat(np.arange(len(free)), [len(row) for row in options])
    constraints = [LinearConstraint(
        (owner == np.arange(len(free))[:, None]).astype(float), 1, 1)]
    for kind, ratio in budgets.items():
        if kind not in ('size', 'bops'):
            raise ValueError(f"a budget of {kind!r} is unknown, allowed: "
                             "'size' and 'bops'")
        _check_budget(layers, free, options, kind, ratio)
        whole = sum(layer.cost(kind, None) for layer in layers)
        rest = sum(layer.cost(kind, None) for layer in layers if layer.fixed)
        costs = np.array([layer.cost(kind, bits) for layer, row
                          in zip(free, options) for bits in row])
        # A hair of room, so that a budget that is met exactly is met.
        constraints.append(LinearConstraint(
            costs / whole, -np.inf, ratio - rest / whole + 1e-12))
    result = milp(noise / max(noise.max(), 1e-300),
                  constraints=constraints, bounds=Bounds(0, 1),
                  integrality=np.ones(noise.size),
                  options=dict(mip_rel_gap=0.))
    if result.x is None:
        raise ValueError(f'the budgets {budgets} cannot be met together: '
                         'each one can; give one of them more room')
    return {layer.names[0]: row[result.x[owner == index].argmax()]
            for index, (layer, row) in enumerate(zip(free, options))}


def _options(layer: Layer, weight_bits: Sequence[int],
             activation_bits: Optional[Sequence[int]]) -> List[Bits]:
    """What a layer may have; nothing that broke the outputs."""
    if layer.kept is not None:
        return [layer.kept]
    every = [Bits(*each) for each in itertools.product(
        weight_bits, [layer.activation_bits] if activation_bits is None
        else activation_bits)]
    usable = [bits for bits in every if np.isfinite(layer.noise(bits))]
    if not usable:
        raise ValueError(
            f'the outputs with {layer.names[0]} at '
            f'{", ".join(str(list(bits)) for bits in every)} bits of weights '
            'and inputs are not finite, so that none can be chosen: allow '
            'more bits, or skip the layer by a rule')
    return usable


def _check_budget(layers, free, options, kind: str, ratio: float) -> None:
    ends = [relative_cost(layers, kind, {
        layer.names[0]: extreme(row, key=lambda bits: layer.cost(kind, bits))
        for layer, row in zip(free, options)}) for extreme in (min, max)]
    if not ratio >= ends[0] * (1 - 1e-12):
        raise ValueError(
            f'a budget of {kind}={ratio:g} cannot be met: with these bits '
            f'{kind} lies between {ends[0]:.4g} and {ends[1]:.4g} of the '
            'float model')


def make_rules(layers: Sequence[Layer], choice: Dict[str, Bits],
               config: dict, plans: Iterable[LayerPlan] = ()) -> List[dict]:
    """The ``rules`` of a policy, to put in place of those of a config.

    Those of single layers come first: the first one that matches wins.

    Args:
        layers (list[Layer]): All layers.
        choice (dict[str, Bits]): From :func:`propose`.
        config (dict): The ``quantization`` that they are for; what its rules
            say of layers besides bits stays.
        plans (iterable of LayerPlan): The plan of the model with this
            config: its rules decide ReLUs and layers without a quantized
            form as well.
    """
    parsed = QuantConfig.from_dict(config)
    rules: List[dict] = []
    acting: Dict[str, Sequence[str]] = {**quantized_sides(plans)}
    for layer in layers:
        bits = choice.get(layer.names[0])
        for name in layer.names:
            acting.setdefault(name, LAYER_SIDES if bits else ())
            own = Bits(*(scheme.bits for scheme in parsed.schemes(name)))
            if bits in (None, own):
                continue
            old = parsed.rule_of(name)
            rules.append(_rule_of_bits(name, bits, old, parsed,
                                       'products' in acting[name]))
            del acting[name]
    return rules + acting_rules(config, acting)


def _rule_of_bits(name: str, bits: Bits, old: Optional[Rule],
                  config: QuantConfig, multiplies: bool) -> dict:
    """The rule of one layer, with what the old one says besides bits; of
    products where the layer computes some."""
    sides = {}
    for side in LAYER_SIDES:
        fields = dict(getattr(old, side, None) or {},
                      bits=getattr(bits, side))
        if fields != dict(bits=getattr(config, side).bits):
            sides[side] = fields
    if old is not None and old.products and (
            multiplies or old.products.get('bits', 0) is None):
        sides['products'] = dict(old.products)
    # A rule must say something, if only what holds without any.
    return dict(match=glob.escape(name),
                **(sides or dict(weight=dict(bits=bits.weight))))


def format_rules(rules: Iterable[dict]) -> str:
    """Rules as they stand in a config."""
    def written(value):
        if isinstance(value, dict):
            return 'dict(' + ', '.join(f'{key}={written(item)}' for key, item
                                       in value.items()) + ')'
        return repr(value)

    return '\n'.join(['rules=[', *(f'    {written(rule)},'
                                   for rule in rules), ']'])


def predict_metric(noise: float, measured: Iterable[Tuple[float, float]],
                   rule: str = 'greater') -> float:
    """The metric that goes with a noise, from what was measured.

    More noise never gives a better metric (isotonic regression); beyond the
    greatest noise that was measured, the metric there. No metric is as bad
    as the worst one.

    Args:
        noise (float): Noise of the outputs.
        measured (iterable of tuple): Noise and metric of each measurement,
            that of the float model among them.
        rule (str): Which metric is better, 'greater' or 'less'. Defaults to
            'greater'.
    """
    from scipy.optimize import isotonic_regression
    known = [each for each in measured if np.isfinite(each[0])]
    less = rule == 'less'
    worst = (max if less else min)((
        metric for _, metric in known if np.isfinite(metric)),
        default=float('nan'))
    if np.isnan(worst):
        return worst
    noises, metrics = (np.array(each) for each in zip(*sorted(
        (each, metric if np.isfinite(metric) else worst)
        for each, metric in known)))
    fitted = isotonic_regression(metrics, increasing=less).x
    return float(np.interp(noise, noises, fitted))
