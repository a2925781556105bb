"""What a quantized layer does to its weights and inputs, in figures."""
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Callable, Dict, Iterable, List, Optional

import torch
from torch import Tensor, nn

from ..errors import and_more
from ..functional import quantized_loss, to_float64
from ..modes import eval_mode
from ..training import get_state

BINS = 60
LIMIT = 1.5  # of the largest level, which histograms reach to
MOST_VALUES = 1 << 18  # that are looked at, of one input


@dataclass
class Part:
    """Weights or inputs of a layer; values in units of the largest level.

    Args:
        bits (int): Number of bits.
        levels (list[float]): The grid.
        counts (list[int]): Values in bins of equal width from ``-LIMIT`` to
            ``LIMIT`` (inputs without sign: from 0); those outside count in
            the bins at the ends.
        lowest (float): Where the first bin begins.
        clipped (float): Share of the values other than zero that lie beyond
            the largest level by more than half a step.
        dead_levels (int): Levels that no value is rounded to.
        loss (float): ``sum |x - Q(x)| / sum |x|`` (Eq. 3).
        clips (list[float]): The largest level of each group.
    """
    bits: int
    levels: List[float]
    counts: List[int]
    lowest: float
    clipped: float
    dead_levels: int
    loss: float
    clips: List[float] = field(default_factory=list)


@dataclass
class LayerFigures:
    """A layer; None where that part stays float, has no threshold yet or no
    integer codes.

    Args:
        name (str): The layer.
        weight (Part, optional): Its weights.
        activation (Part, optional): Its inputs.
        one_level (bool): Whether all weights are one level.
        dead_outputs (int): Filters of which every weight is zero.
    """
    name: str
    weight: Optional[Part] = None
    activation: Optional[Part] = None
    one_level: bool = False
    dead_outputs: int = 0

    def to_dict(self) -> dict:
        return asdict(self)


def weight_figures(name: str, layer: nn.Module) -> LayerFigures:
    """Figures of a layer's weights.

    Args:
        name (str): The layer.
        layer (nn.Module): A quantized layer.
    """
    found = LayerFigures(name)
    quantizer = getattr(layer, 'weight_quantizer', None)
    if quantizer is None:
        return found
    weight = layer.latent_weight.detach()
    if not torch.isfinite(weight).all():
        return found  # told elsewhere; there is nothing to count
    quantized = quantizer(weight)
    rows = quantized.flatten(1)
    found.dead_outputs = int((rows == 0).all(1).sum())
    try:
        codes, scale = quantizer.codes(weight)
    except ValueError:  # levels that are not equally spaced
        found.one_level = quantized.unique().numel() == 1
        return found
    found.one_level = codes.unique().numel() == 1
    low, high = quantizer.lowest_code, quantizer.highest_code
    top = max(-low, high)
    grid = torch.arange(low, high + 1, quantizer.code_step,
                        dtype=torch.float64)
    group = quantizer.group_size if quantizer.group_size > 0 else len(weight)
    found.weight = _part(
        quantizer.bits, to_float64(weight / (scale * top)), codes, grid,
        top, float(quantized_loss(weight, quantized)), -LIMIT)
    found.weight.clips = [float(value) for value in
                          (scale.flatten() * top)[::group]]
    return found


class InputFigures:
    """Gathers figures of a layer's inputs over batches.

    Args:
        quantizer (nn.Module): That of the inputs, with a threshold.
    """

    def __init__(self, quantizer: nn.Module) -> None:
        self.quantizer = quantizer
        scale, low, high, *rest = quantizer.code_range()
        zero = rest[0] if rest else 0
        # By magnitude: of values below zero the largest level is 0.
        self.levels = max(high - zero, zero - low)
        self.top = self.levels * scale
        self.scale = scale
        self.grid = torch.arange(low - zero, high - zero + 1).double()
        self.sums: Optional[Part] = None
        self.used: set = set()
        self.error = self.total = 0.
        self.beyond = self.nonzero = 0

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Count some values of one input, evenly chosen: figures need no
        more, and a run has memory for no more."""
        x = x.detach().reshape(-1)
        # An odd stride visits every column of an image of even width.
        x = x[::max(1, x.numel() // MOST_VALUES) | 1]
        quantized = self.quantizer(x)
        codes = (quantized / self.scale).round()
        signed = float(self.grid[0]) < 0
        part = _part(self.quantizer.bits, to_float64(x / self.top), codes,
                     self.grid, float(self.levels), 0.,
                     -LIMIT if signed else 0.)
        self.used |= set(codes.unique().tolist())
        self.error += float((x - quantized).abs().sum())
        self.total += float(x.abs().sum())
        nonzero = int(x.count_nonzero())
        self.beyond += round(part.clipped * nonzero)
        self.nonzero += nonzero
        if self.sums is None:
            self.sums = part
        else:
            self.sums.counts = [ours + theirs for ours, theirs in zip(
                self.sums.counts, part.counts)]

    def figures(self) -> Optional[Part]:
        """Figures of all that was added; None if that is nothing."""
        if self.sums is None:
            return None
        self.sums.loss = self.error / max(self.total, 1e-30)
        self.sums.clipped = self.beyond / max(self.nonzero, 1)
        self.sums.dead_levels = len(self.grid) - len(self.used)
        self.sums.clips = [self.top]
        return self.sums


def _part(bits: int, x: Tensor, codes: Tensor, grid: Tensor, top: float,
          loss: float, lowest: float) -> Part:
    x = x.flatten().cpu()
    counts = torch.histc(x.clamp(lowest, LIMIT), BINS, lowest, LIMIT)
    levels = grid / max(top, 1)
    half = float(levels[1] - levels[0]) / 2
    beyond = (x > float(levels[-1]) + half) | (x < float(levels[0]) - half)
    return Part(bits, levels.tolist(), counts.long().tolist(),
                lowest, int(beyond.sum()) / max(int(x.count_nonzero()), 1),
                len(grid) - codes.unique().numel(), loss)


@torch.no_grad()
def measure_layers(model: nn.Module, forwards: Iterable[Callable]
                   ) -> Dict[str, LayerFigures]:
    """Figures of all quantized layers that have a weight.

    Args:
        model (nn.Module): A quantized model; in eval mode meanwhile.
        forwards (iterable of callables): Each runs it on one batch; of none,
            only weights are looked at.
    """
    layers = {name: layer for name, layer in get_state(model).layers.items()
              if hasattr(layer, 'weight_quantizer')}
    found = {name: weight_figures(name, layer)
             for name, layer in layers.items()}
    with ExitStack() as stack, eval_mode(model):
        inputs = watch_inputs(layers, stack)
        for forward in forwards:
            forward()
    for name, gathered in inputs.items():
        found[name].activation = gathered.figures()
    return found


def watch_inputs(layers: Dict[str, nn.Module], stack: ExitStack
                 ) -> Dict[str, InputFigures]:
    """Count what layers read, until the stack is left."""
    inputs = {}
    for name, layer in layers.items():
        quantizer = layer.input_quantizer
        if quantizer is None or not quantizer.initialized:
            continue
        try:
            inputs[name] = InputFigures(quantizer)
        except ValueError:  # no integer codes
            continue
        stack.callback(layer.register_forward_pre_hook(
            lambda module, args, kwargs, gathered=inputs[name]: gathered.add(
                _input_of(args, kwargs).detach()), with_kwargs=True).remove)
    return inputs


def _input_of(args: tuple, kwargs: dict) -> Tensor:
    """What a layer quantizes first; attention's query may be given by its
    keyword, after others."""
    return args[0] if args else kwargs.get('query',
                                           next(iter(kwargs.values())))


MUCH = .05  # clipped of inputs: more costs more than finer steps give
LATE = .8  # of a training: from here on thresholds should rest
TO_REST = 'Train longer, or let the learning rate fall to zero.'


def find_trouble(figures: Iterable[LayerFigures]) -> List[str]:
    """One line for each kind of trouble: where, and the remedy."""
    figures = list(figures)
    lines = []

    def say(layers, what, remedy):
        if layers:
            lines.append(f'{what}: {and_more(layers)}. {remedy}')

    say([each.name for each in figures if each.one_level],
        'all weights became one level',
        'The layer is lost: give it more bits by a rule, or train with a '
        'smaller learning rate or weight decay.')
    say([f'{each.name} ({each.dead_outputs})' for each in figures
         if each.dead_outputs and not each.one_level],
        'outputs whose weights are all zero',
        'They compute nothing: give the layer more bits by a rule, or a '
        'smaller group_size.')
    say([f'{each.name} ({each.activation.clipped:.0%})' for each in figures
         if each.activation and each.activation.clipped > MUCH],
        f'more than {MUCH:.0%} of the inputs are clipped',
        'Train longer, or give these layers more bits, or another type or '
        'threshold, of activation by a rule.')
    return lines


def has_moved(before: Optional[float], after: float) -> bool:
    """Whether a threshold moved late in a training.

    Args:
        before (float, optional): Its value after ``LATE`` of the training.
        after (float): Its value at the end.
    """
    return bool(before) and abs(after / before - 1) > .1


def moving_thresholds(before: Dict[str, float], after: Dict[str, float]
                      ) -> Optional[str]:
    """A line where thresholds moved late in a training.

    Args:
        before (dict[str, float]): By quantizer, after ``LATE`` of it.
        after (dict[str, float]): At the end.
    """
    moved = [name.rpartition('.')[0] for name, value in after.items()
             if has_moved(before.get(name), value)]
    return ('thresholds still move at the end: '
            f'{and_more(moved)}. {TO_REST}') if moved else None
