"""Which layers hurt: quantize one at a time, or all but one."""
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional

from torch import Tensor, nn

from ..plan import LayerPlan
from ..training import get_state

# What is quantized -> the parts of a layer that do it.
PARTS = dict(weight=('weight_quantizer', ), activation=('input_quantizer', ),
             both=('weight_quantizer', 'input_quantizer'))
WAYS = ('alone', 'rest')


class Setting(NamedTuple):
    """What is quantized in one measurement.

    Args:
        group (str): A layer, or a stage: the layers whose name begins so;
            '' is none.
        side (str): 'weight', 'activation' or 'both'.
        bits (int): Bit width of that side.
        way (str): 'alone': only this group is quantized; 'rest': all but it.
        by (str): 'layer' or 'stage': a stage may have the name of a layer
            that has others inside.
    """
    group: str
    side: str
    bits: int
    way: str
    by: str = 'layer'

    @property
    def key(self) -> str:
        words = [self.way, self.side, self.bits, self.group]
        if self.by != 'layer':
            words += ['by', self.by]
        return ' '.join(map(str, words))

    @classmethod
    def from_key(cls, key: str) -> Optional['Setting']:
        """The setting of a key; None of other keys."""
        words = key.split(' ', 3)
        if len(words) < 4 or words[0] not in WAYS or words[1] not in PARTS:
            return None
        group, _, by = words[3].partition(' by ')
        return cls(group, words[1], int(words[2]), words[0], by or 'layer')


@dataclass
class Figures:
    """What one measurement gave.

    Args:
        metric (float): Metric of the task.
        noise (float): Energy of the difference of the outputs from those of
            the float model, over the energy of these.
        error (float): Standard error of ``noise`` over batches.
    """
    metric: float
    noise: float
    error: float


def group_layers(names: Iterable[str], by: str) -> Dict[str, List[str]]:
    """Layers to measure together.

    Args:
        names (iterable of str): Layers, in order.
        by (str): 'layer': each on its own; 'stage': those whose names agree
            in the first two parts, as ``backbone.layer1``.

    Raises:
        ValueError: ``by`` is neither.

    Examples:
        >>> group_layers(['neck.convs.0.conv', 'neck.convs.1.conv'], 'stage')
        {'neck.convs': ['neck.convs.0.conv', 'neck.convs.1.conv']}
    """
    if by not in ('layer', 'stage'):
        raise ValueError(f"by is {by!r}, allowed: 'layer' or 'stage'")
    groups: Dict[str, List[str]] = {}
    for name in names:
        group = name if by == 'layer' else '.'.join(name.split('.')[:2])
        groups.setdefault(group, []).append(name)
    return groups


def shared_weights(plans: Iterable[LayerPlan]) -> Dict[str, List[str]]:
    """Layers by the first one of the same weight, which all must agree."""
    groups: Dict[int, List[str]] = {}
    for plan in plans:
        if plan.parameter is not None:
            groups.setdefault(id(plan.parameter), []).append(plan.name)
    return {names[0]: names for names in groups.values()}


@contextmanager
def float_parts(model: nn.Module, layers: Dict[str, Iterable[str]]):
    """Layers of a quantized model compute in float for a while.

    Args:
        model (nn.Module): A quantized model.
        layers (dict[str, iterable of str]): Name of a layer -> its quantizers
            that are not to act, of ``PARTS['both']``; 'input_quantizer' is
            those of all inputs. Quantized ReLUs, outputs and products are
            float as a whole.
    """
    state = get_state(model)
    converted = state.layers if state else {}
    with ExitStack() as stack:
        for name, quantizers in layers.items():
            module = converted[name]
            if not hasattr(module, 'weight_quantizer'):
                module.forward = partial(nn.ReLU.forward, module) if \
                    isinstance(module, nn.ReLU) else _unchanged
                stack.callback(delattr, module, 'forward')
                continue
            inputs = module.input_names if 'input_quantizer' in quantizers \
                else ()
            for quantizer in {*quantizers, *inputs}:
                there = getattr(module, quantizer, None)
                if there is not None:
                    setattr(module, quantizer, None)
                    stack.callback(setattr, module, quantizer, there)
        yield


def _unchanged(*args) -> Tensor:
    """An output, or an operand and its place before it, not rounded."""
    return args[-1]


def float_in(setting: Setting, members: Iterable[str],
             layers: Iterable[str]) -> Dict[str, tuple]:
    """What computes in float in a setting, for :func:`float_parts`.

    Args:
        setting (Setting): What is quantized.
        members (iterable of str): The layers of its group.
        layers (iterable of str): All that is quantized.
    """
    members = set(members)
    if setting.way == 'rest':
        return {name: PARTS[setting.side] for name in members}
    left = tuple(each for each in PARTS['both']
                 if each not in PARTS[setting.side])
    return {name: left if name in members else PARTS['both']
            for name in layers}


def all_settings(groups: Iterable[str], sides: Iterable[str],
                 bits: Iterable[int], ways: Iterable[str],
                 by: str = 'layer') -> Iterator[Setting]:
    """Models change with the way and the bits: these are outermost."""
    for way in ways:
        for number in bits:
            for group in groups:
                for side in sides:
                    yield Setting(group, side, number, way, by)


def worst_first(figures: Dict[Setting, Figures]) -> List[Setting]:
    """Settings by what they cost, the costliest first.

    Of 'alone' that is the noise; of 'rest' the least noise comes first: what
    would be won if the group were float.
    """
    def cost(setting):
        noise = figures[setting].noise
        if math.isnan(noise):  # broken outputs are worse than any
            noise = math.inf
        return -noise if setting.way == 'alone' else noise

    return sorted(figures, key=cost)


