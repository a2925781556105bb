"""Bits for every layer under a budget: an integer program."""
import glob
import itertools
from dataclasses import dataclass
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..config import QuantConfig

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
        groups (int): Number of scales, float32.
        macs (int): Multiply-accumulates of all calls.
        weight_noise (dict[int, float]): Noise of the outputs by bits of the
            weights alone.
        activation_noise (dict[int, float]): The same of the inputs.
        activation_bits (int): What the inputs keep where they are not chosen.
        fixed (bool): It stays float.
    """
    names: List[str]
    weights: int
    groups: int
    macs: int
    weight_noise: Dict[int, float]
    activation_noise: Dict[int, float]
    activation_bits: int
    fixed: bool = False

    def noise(self, bits: Bits) -> float:
        """Noise of weights and inputs, which are taken to add up."""
        return sum(_never_falling(noises)[number] for noises, number in (
            (self.weight_noise, bits.weight),
            (self.activation_noise, bits.activation)))

    def cost(self, kind: str, bits: Optional[Bits]) -> float:
        """Bytes ('size') or bit operations ('bops'); None is float."""
        if kind == 'size':
            return 4. * self.weights if bits is None else \
                -(-self.weights * bits.weight // 8) + 4. * self.groups
        product = FLOAT * FLOAT if bits is None else \
            bits.weight * bits.activation
        return float(self.macs * product)


def _never_falling(noises: Dict[int, float]) -> Dict[int, float]:
    """More bits are never worse: where they were measured to be, that is
    noise of the measurement."""
    order = sorted(noises)
    return dict(zip(order, np.minimum.accumulate(
        [noises[bits] for bits in order])))


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
    options = [[Bits(*each) for each in itertools.product(
        weight_bits, [layer.activation_bits] if activation_bits is None
        else sorted(activation_bits))] for layer in free]
    if not free or not options[0]:
        raise ValueError('no layer is quantized, or no bits are allowed: '
                         'there is nothing to choose')
    noise = np.array([[layer.noise(bits) for bits in row]
                      for layer, row in zip(free, options)])
    constraints = [LinearConstraint(
        np.kron(np.eye(len(free)), np.ones(noise.shape[1])), 1, 1)]
    for kind, ratio in budgets.items():
        if kind not in ('size', 'bops'):
            raise ValueError(f"a budget of {kind!r} is unknown, allowed: "
                             "'size' and 'bops'")
        _check_budget(layers, free, options, kind, ratio)
        whole = sum(layer.cost(kind, None) for layer in layers)
        rest = sum(layer.cost(kind, None) for layer in layers if layer.fixed)
        costs = np.array([[layer.cost(kind, bits) for bits in row]
                          for layer, row in zip(free, options)])
        # A hair of room, so that a budget that is met exactly is met.
        constraints.append(LinearConstraint(
            costs.ravel() / whole, -np.inf, ratio - rest / whole + 1e-12))
    result = milp(noise.ravel() / max(noise.max(), 1e-300),
                  constraints=constraints, bounds=Bounds(0, 1),
                  integrality=np.ones(noise.size),
                  options=dict(mip_rel_gap=0.))
    if result.x is None:
        raise ValueError(f'the budgets {budgets} cannot be met together: '
                         'each one can; give one of them more room')
    chosen = result.x.reshape(noise.shape).argmax(1)
    return {layer.names[0]: row[index]
            for layer, row, index in zip(free, options, chosen)}


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
               config: dict) -> List[dict]:
    """The ``rules`` of a policy, to put in place of those of a config.

    Args:
        layers (list[Layer]): All layers.
        choice (dict[str, Bits]): From :func:`propose`.
        config (dict): The ``quantization`` that they are for; what its rules
            say of layers besides bits stays.
    """
    parsed = QuantConfig.from_dict(config)
    rules = [rule for rule in config.get('rules') or () if rule.get('skip')]
    for layer in layers:
        bits = choice.get(layer.names[0])
        for name in layer.names if bits else ():
            old = parsed.rule_of(name)
            if old is not None and old.skip:
                continue
            sides = dict(weight=dict(old.weight or {}) if old else {},
                         activation=dict(old.activation or {}) if old else {})
            sides['weight']['bits'] = bits.weight
            sides['activation']['bits'] = bits.activation
            for side, scheme in (('weight', parsed.weight),
                                 ('activation', parsed.activation)):
                if sides[side] == dict(bits=scheme.bits):
                    del sides[side]
            if sides:
                rules.append(dict(match=glob.escape(name), **sides))
    return rules


def format_rules(rules: Iterable[dict]) -> str:
    """Rules as they stand in a config."""
    def written(value):
        if isinstance(value, dict):
            return 'dict(' + ', '.join(f'{key}={written(item)}' for key, item
                                       in value.items()) + ')'
        return repr(value)

    return '\n'.join(['rules=[', *(f'    {written(rule)},'
                                   for rule in rules), ']'])


def predict_metric(noise: float, measured: Iterable[Tuple[float, float]]
                   ) -> float:
    """The metric that goes with a noise, from what was measured.

    More noise never gives a better metric (isotonic regression); beyond the
    greatest noise that was measured, the metric there.

    Args:
        noise (float): Noise of the outputs.
        measured (iterable of tuple): Noise and metric of each measurement,
            that of the float model among them.
    """
    from scipy.optimize import isotonic_regression
    noises, metrics = (np.array(each) for each in zip(*sorted(measured)))
    fitted = isotonic_regression(metrics, increasing=False).x
    return float(np.interp(noise, noises, fitted))
