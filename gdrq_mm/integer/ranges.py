"""Scales of the 8-bit quantizers that an integer model adds."""
import copy
from dataclasses import replace
from typing import (
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from ..merge.grids import TINY, QuantParams, map_grids
from ..merge.ops import OPS
from .moves import clamp_range, moved_from, readers, target_of

SAMPLES = 2**14  # values kept of a tensor
CANDIDATES = 40


class Range(NamedTuple):
    """Least and greatest codes of 8 bits in a container."""
    signed: Tuple[int, int]
    unsigned: Tuple[int, int]


RANGES = dict(uint8=Range((-128, 127), (0, 255)),
              int8=Range((-128, 127), (0, 127)))


def widen_grids(model: nn.Module) -> nn.Module:
    """A copy of a merged model whose activations have all codes of int8 up to
    where they were clipped.

    Saturation then clips by itself. Only a grid that reaches less far to one
    side of zero keeps fewer codes there.
    """
    return map_grids(copy.deepcopy(model), _widened)


def _widened(grid: QuantParams) -> QuantParams:
    reach = max(grid.high, -grid.low)
    if not reach:  # zero alone
        return grid
    scale = float(torch.tensor(grid.scale * reach / 127))
    low, high = (round(code * 127 / reach) for code in (grid.low, grid.high))
    return QuantParams(scale, -128 if low == -127 else low, high)


class _Observer(Interpreter):
    """Run a graph and keep values of some nodes."""

    def __init__(self, module: GraphModule, nodes: List[Node]) -> None:
        super().__init__(module)
        self.extra_traceback = False  # errors are whole sentences
        self.samples: Dict[Node, List[Tensor]] = {node: [] for node in nodes}
        self.number = 0

    def run_node(self, n: Node):
        result = super().run_node(n)
        if n in self.samples:
            values = result.detach().flatten().float()
            chosen = values[::-(-values.numel() // SAMPLES)] if \
                values.numel() else values
            # Always the extreme ones, which decide what is clipped.
            extremes = values.aminmax() if values.numel() else ()
            if not all(map(torch.isfinite, extremes)):
                raise ValueError(
                    f'example {self.number} of calibration (the first is that '
                    'of the graph) gives NaN or infinite values at '
                    f'{n.name}: leave it out')
            self.samples[n] += [chosen, *(
                each.view(1) for each in extremes)]
        return result


def alike(example: tuple, others: Iterable[tuple], dynamic: Sequence[str]
          ) -> Iterator[tuple]:
    """All examples that a graph is called with, the one it was made with
    first.

    Raises:
        ValueError: One has another shape, and the graph is of one.
    """
    yield example
    for other in others:
        there, wanted = ([tuple(x.shape) for x in each if isinstance(
            x, Tensor)] for each in (other, example))
        if not dynamic and there != wanted:
            raise ValueError(
                f'an example of calibration has the shapes {there}, that of '
                f'the graph {wanted}: give the same, or say what is dynamic')
        yield other


def observe(module: GraphModule, nodes: List[Node], examples: Iterable[tuple],
            codes: Range) -> Dict[Node, QuantParams]:
    """Grids of 8 bits for nodes of a graph.

    Args:
        module (GraphModule): The graph.
        nodes (list[Node]): Those that get a grid; unsigned behind a ReLU.
        examples (iterable of tuples): What the graph is called with.
        codes (Range): There are.

    Raises:
        ValueError: Values are not finite, or of other shapes than the first.
    """
    observer = _Observer(module, nodes)
    for example in examples:
        observer.run(*example)
        observer.number += 1
    samples = {node: torch.cat(values)
               for node, values in observer.samples.items()}
    grids = {node: best_grid(
                 values, codes.unsigned if _is_positive(node)
                 or _loses_negatives(node) else codes.signed,
                 _finest_reader(node))
             for node, values in samples.items()}
    # Zeros (of a branch that ends in a norm whose weight is zero) do not say
    # how fine they are. ONNX Runtime multiplies zero points of sums in
    # float32: steps far wider than those of the other branch cost precision.
    zeros = {node for node, values in samples.items() if _is_zero(values)}
    finest = min((grid.scale for node, grid in grids.items()
                  if node not in zeros), default=1.)
    for node in zeros:
        grids[node] = replace(grids[node], scale=finest)
    return grids


def _is_positive(value: Any) -> bool:
    """Whether no value of a node is negative: half of the signed codes would
    be of no use, and the other half end where a quantizer of 8 bits does not.
    """
    if not isinstance(value, Node):
        return False
    target, bounds = target_of(value), clamp_range(value)
    if bounds is not None:
        return bounds[0] == 0 or _is_positive(value.args[0])
    if target is OPS.dequantize.default:
        return value.args[2] >= 0
    if target is torch.ops.aten.add.Tensor:
        return value.kwargs.get('alpha', 1) == 1 and all(
            map(_is_positive, value.args[:2]))
    sources = moved_from(value)
    return bool(sources) and all(map(_is_positive, sources))


def _loses_negatives(node: Node) -> bool:
    """Whether all that read a node are quantizers of unsigned codes."""
    users = readers(node)
    return bool(users) and all(
        target_of(user) is OPS.quantize.default and user.args[2] >= 0
        for user in users)


def _finest_reader(node: Node) -> Optional[float]:
    """The least scale of the quantizers that read a tensor."""
    scales = []
    for user in node.users:
        if target_of(user) is OPS.quantize.default:
            scales.append(user.args[1])
        elif moved_from(user):
            scales.append(_finest_reader(user))
    return min((scale for scale in scales if scale), default=None)


def _is_zero(values: Tensor) -> bool:
    """Whether no value is large enough for a scale of 8 bits."""
    return not values.numel() or float(values.abs().max()) < 2**8 * TINY


def best_grid(values: Tensor, codes: Tuple[int, int],
              reader: Optional[float] = None) -> QuantParams:
    """The 8-bit grid with the least squared error.

    Args:
        values (Tensor): A sample, float32.
        codes (tuple[int, int]): The least and the greatest one.
        reader (float, optional): Scale of a quantizer that reads the rounded
            values. The grid's scale is then an odd fraction of it: its
            bounds between codes are bounds of the grid as well, so that
            rounding first to 8 bits changes none of its codes. But where it
            ends before the greatest value, others are tried as well.

    Examples:
        >>> best_grid(torch.rand(1000), (0, 255)).high
        255
    """
    low, high = codes
    if _is_zero(values):
        return QuantParams(1., low, high)
    top = float(values.abs().max())
    scales = torch.zeros(0)
    if reader is not None:
        scales = reader / torch.arange(1., 2**8, 2)
    if reader is None or reader * high < top:  # others may read what is above
        scales = torch.cat([scales, torch.linspace(
            1., 1 / CANDIDATES, CANDIDATES) * top / high])
    scales = scales.tolist()  # float32 values
    values = values.double()
    errors = [float(((values / scale).round().clamp(low, high) * scale
                     - values).square().sum()) for scale in scales]
    return QuantParams(scales[errors.index(min(errors))], low, high)
